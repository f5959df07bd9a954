"""What a run is expected to need, as plugins tell it to ``hooktrain plan``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["DataEstimate", "MemoryEstimate", "ModelEstimate"]


@attrs.frozen(kw_only=True)
class DataEstimate:
    """What an epoch trains on; None is not known without preparing the data.

    Attributes:
        rows: rows of the data set, packs counting once: what a micro-batch consists of.
        tokens: tokens in them, padding excluded.
        supervised: those that carry a loss.
        longest: tokens of the longest row, or the most that there can be.
        how: where these figures come from, for people.
    """

    rows: int | None = None
    tokens: int | None = None
    supervised: int | None = None
    longest: int | None = None
    how: str = ""


@attrs.frozen(kw_only=True)
class ModelEstimate:
    """The sizes of a model and of what is kept for each of its weights.

    Attributes:
        module: the model as ``sketch_model`` made it; its tensors have shapes and types, and hold nothing.
        parameters: numbers in all weights, tied ones once.
        trainable: those of them that are trained.
        weight_bytes: all weights in the types that they are kept in.
        trainable_bytes: those of them that are trained.
        state_numbers: numbers that the optimizer keeps; None when that is not known.
        state_bytes: the same in bytes.
        activation_bytes: what a micro-batch keeps for the backward pass, by what it is; None when not known.
        dtypes: numbers by type of weight.
    """

    module: Module
    parameters: int
    trainable: int
    weight_bytes: int
    trainable_bytes: int
    state_numbers: int | None = None
    state_bytes: int | None = None
    activation_bytes: Mapping[str, int] | None = None
    dtypes: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class MemoryEstimate:
    """What the strategy keeps where, in bytes for one rank.

    Attributes:
        device: bytes on the rank's device by what they are for.
        host: bytes in the processor's memory where the device is another one.
        peak: most that the device holds at once, when not all of ``device`` is there at the same time.
        notes: what the figures suppose, for people.
    """

    device: Mapping[str, int]
    host: Mapping[str, int] = attrs.field(factory=dict)
    peak: int | None = None
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        total = sum(self.device.values())
        return {
            "device": dict(self.device),
            "host": dict(self.host),
            "peak": total if self.peak is None else self.peak,
            "notes": list(self.notes),
        }
