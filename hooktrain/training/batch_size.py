"""``micro_batch_size: auto``: the largest micro-batch that fits, found by trial in a process beside each rank's."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import attrs

from hooktrain.config import BatchSize
from hooktrain.errors import HooktrainError
from hooktrain.masking import mask_text
from hooktrain.protocols import CheckpointEngineDefaults, StrategyDefaults, member
from hooktrain.recipe.model import NO_LIMIT, Recipe
from hooktrain.training.build import make_checkpoint_engines, newest_checkpoint
from hooktrain.training.rank_notes import NOTES
from hooktrain.training.short_runs import passed_plugins, without_observers

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["with_batch_size"]

_UNUSED = ("global_batch_size", "memory_limit", "limit_train_batches", "hang_timeout")
_LOOK = 0.05
"""Seconds between two looks at the trials."""
_CONSEQUENCE = 2.0
"""Seconds in which a trial may say that a size was too large, when that of another rank has lost it."""


def with_batch_size(trainer: Trainer) -> Recipe:
    """Return the recipe with its micro-batch size, which is found where it says ``auto``. Collective.

    Args:
        trainer: whose ranks are connected, with nothing else built.

    Raises:
        HooktrainError: not even one row fits; or no process can try it.
    """
    recipe = trainer.recipe
    if not recipe.is_batch_size_open:
        return recipe
    assert recipe.global_batch_size is not None, "auto was refused without it"
    ranks = recipe.data_ranks(trainer.world)
    size = _recorded(trainer, ranks)
    if size:
        trainer.say(f"micro_batch_size: {size}, as in the run that is resumed")
    else:
        share = recipe.global_batch_size // ranks
        size, note = _measured(trainer, [each for each in range(1, share + 1) if share % each == 0])
        trainer.say(f"micro_batch_size: {size}, {note}")
    made = attrs.evolve(recipe, micro_batch_size=BatchSize(size), is_batch_size_open=False).for_ranks(trainer.world)
    member(trainer.strategy, StrategyDefaults, "take_sizes")(made)
    return made


def _recorded(trainer: Trainer, ranks: int) -> int:
    """Return the size with which the run that is to be resumed has trained, on as many ranks; 0 where there is none."""
    recipe, found = trainer.recipe, None
    if trainer.resume_from is None and not any(config.enabled and config.auto_resume for config in recipe.checkpoint):
        return 0
    trainer.checkpoint_engines = make_checkpoint_engines(trainer)
    if trainer.world.is_main:
        path = trainer.resume_from or newest_checkpoint(trainer)
        engines = [engine for engine in trainer.checkpoint_engines if path is not None and engine.can_load(path)]
        with suppress(OSError, ValueError):  # what is wrong with it is said when it is checked
            found = member(engines[0], CheckpointEngineDefaults, "provenance")(path) if engines else None
    found = trainer.strategy.gather_objects(None if found is None else found.get("batch"))[0]
    if found is None:
        return 0
    micro, accumulation, then = found
    return int(micro) if then == ranks and micro * accumulation * then == recipe.global_batch_size else 0


def _measured(trainer: Trainer, sizes: Sequence[int]) -> tuple[int, str]:
    """Try sizes, the smallest first, until one does not fit; returns the largest that does, and how it was found."""
    recipe, strategy = trainer.recipe, trainer.strategy
    limit = recipe.memory_limit
    if limit is None and strategy.device.type == "cpu":
        raise HooktrainError(f"micro_batch_size: {NO_LIMIT}")
    trainer.say(f"micro_batch_size: auto; trying {', '.join(map(str, sizes))} on the longest sequences")
    with _trial(trainer, sizes) as trial:
        states = _followed(trainer, trial)
    size = min(state.fits for state in states)
    over = [state for state in states if state.over]
    if not size and over:
        raise HooktrainError(
            f"micro_batch_size: auto: not even one row at once fits: {over[0].over}; write a shorter data.max_length or"
            " a larger memory_limit, or see `hooktrain guide using/memory`"
        )
    if not over:
        return size, "the whole share of a rank, which fits"
    return size, f"the largest that fits; {over[0].over}"


class _State(NamedTuple):
    """How far a rank's trial is: the largest size that fits, what was too large, and what else ended it, in words."""

    fits: int = 0
    over: str = ""
    problem: str = ""
    ended: bool = False


def _followed(trainer: Trainer, trial: _Trial) -> list[_State]:
    """Follow the trials of all ranks until one of them ends; returns how far each was. Collective."""
    broken = 0.0
    while True:
        states = [_State(*each) for each in trainer.strategy.gather_objects(list(trial.state()))]
        problem = next((state.problem for state in states if state.problem), "")
        if any(state.over for state in states) or all(state.ended and not state.problem for state in states):
            return states
        broken = broken or (time.monotonic() if problem else 0.0)
        late = trainer.strategy.gather_objects(bool(broken) and time.monotonic() - broken > _CONSEQUENCE)
        if any(late):
            raise HooktrainError(f"micro_batch_size: auto: the trial failed, so write a number instead; {problem}")
        time.sleep(_LOOK)


class _Trial:
    """The process that tries sizes for this rank.

    Args:
        process: it; it prints a line of JSON for each size.
        errors: what else it prints.
        patience: seconds without a line after which it is given up; 0 for ever.
    """

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes], patience: float) -> None:
        self.process, self.errors, self.patience = process, errors, patience
        self.fits, self.over = 0, ""
        self.progress = time.monotonic()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None, "it was made with a pipe"
        for line in self.process.stdout:
            said = json.loads(line)
            self.progress = time.monotonic()
            self.fits, self.over = said.get("fits", self.fits), said.get("over", "")

    def state(self) -> _State:
        """How far it is."""
        status = self.process.poll()
        if status is None:
            waited = time.monotonic() - self.progress
            hung = f"nothing has come of it for {waited:.0f} s" if 0 < self.patience < waited else ""
            return _State(self.fits, self.over, hung)
        self.reader.join()
        if self.over or status == 0:
            return _State(self.fits, self.over, ended=True)
        if status == -9:  # as the system does where memory runs out
            return _State(self.fits, "the next one was ended by SIGKILL, as where memory runs out", ended=True)
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()
        return _State(self.fits, "", mask_text(said[-1] if said else f"it ended with status {status}"), ended=True)


@contextmanager
def _trial(trainer: Trainer, sizes: Sequence[int]) -> Iterator[_Trial]:
    """Start this rank's trial, which ends with the block at the latest. Collective."""
    world, environment = trainer.world, {key: value for key, value in os.environ.items() if key != NOTES}
    with socket.create_server(("", 0)) as server:  # so that another program does not take the port meanwhile
        port = trainer.strategy.gather_objects(server.getsockname()[1])[0]
    if world.world_size > 1:  # the trials' first rank keeps their store
        environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        environment["MASTER_PORT"] = str(port)
    line = [sys.executable, "-m", "hooktrain.training.batch_trial"]
    with tempfile.TemporaryDirectory(prefix="hooktrain-") as folder, tempfile.TemporaryFile() as errors:
        given = _given(trainer, sizes, Path(folder))
        process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True
        )
        try:
            assert process.stdin is not None, "it was asked for"
            with suppress(BrokenPipeError):  # why it has ended is said as of any other
                process.stdin.write(json.dumps(sys.path).encode() + b"\n" + given)
                process.stdin.flush()
            yield _Trial(process, errors, trainer.recipe.hang_timeout)
        finally:
            process.kill()
            process.wait()


def _given(trainer: Trainer, sizes: Sequence[int], folder: Path) -> bytes:
    """What the process is given: the recipe, changed to a short run, the objects from Python, and the sizes."""
    host, recipe = trainer.host, trainer.recipe
    raw, switches = without_observers(host)
    raw = {key: value for key, value in raw.items() if key not in _UNUSED}
    raw |= {"micro_batch_size": 1, "gradient_accumulation_steps": sizes[-1], "train_iters": 4 * len(sizes)}
    raw |= {"on_nan": "skip", "max_skipped_steps": 0, "run_dir": str(folder)}
    given = {
        "recipe": raw,
        "switches": switches,
        "plugins": [each.__name__ if inspect.ismodule(each) else each for each in passed_plugins(host)],
        "python_parts": host.manager.get_plugin("python_parts"),
        "source": host.recipe_source,
        "name": recipe.name,
        "sizes": list(sizes),
        "limit": recipe.memory_limit,
    }
    try:
        return pickle.dumps(given)
    except Exception as problem:
        raise HooktrainError(
            "micro_batch_size: given auto, which another process tries, and what was passed from Python cannot be"
            f" passed on to it ({problem}); write a number"
        ) from problem
