"""Configuration of ``full`` checkpoints; imported without torch."""

from __future__ import annotations

import attrs

from hooktrain import CheckpointConfig, at_least, field, one_of

__all__ = ["FullConfig"]


@attrs.frozen(kw_only=True)
class FullConfig(CheckpointConfig):
    """Model, optimizer, scheduler, random states, data cursor, counters, plugin states, recipe and plugins."""

    keep_last: int = field(default=0, validator=at_least(0))
    """How many checkpoints to keep; 0 keeps all."""
    keep_every: int = field(default=0, validator=at_least(0))
    """Besides the last ones, keep those whose step is a multiple of this; 0 none."""
    keep_best: str = field(default="")
    """Besides the last ones, keep the one with the best value of this metric of the evaluation, such as
    ``eval/held_out/loss``, measured at its own step; that of ``save_best`` when omitted."""
    keep_best_mode: str = field(default="min", validator=one_of("min", "max"))
    """Whether the lowest or the highest value is the best."""
    asynchronous: bool = field(default=False)
    """Whether training continues while the files are written, from a copy of the rank's state in the host's memory."""
    on_failure: str = field(default="warn", validator=one_of("warn", "stop"))
    """What the run does when an asynchronous save fails. A synchronous one that fails always stops it."""
    save_frozen: bool = field(default=False)
    """Whether to write frozen weights too. Otherwise those that are still as built are not written: building the model
    restores them, and a resume compares their checksums."""
