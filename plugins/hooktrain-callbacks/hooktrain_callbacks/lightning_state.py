"""The state of Lightning callbacks in hooktrain's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain_callbacks.lightning_trainer import LightningTrainer
    from hooktrain_callbacks.slots import Slots

__all__ = ["LightningState"]

_WEIGHTS = "state_dict"
_ARE_THE_WEIGHTS = "hooktrain: the model's own weights"


class LightningState:
    """Keeps what ``state_dict`` gives, and what ``on_save_checkpoint`` adds to or changes in a checkpoint.

    Args:
        slots: the callbacks.
        pl: the stand-in trainer.
        module: the stand-in module.
    """

    def __init__(self, slots: Slots, pl: LightningTrainer, module: Any) -> None:
        self.slots, self.pl, self.module = slots, pl, module

    def collect(self) -> dict[str, Any]:
        """What a checkpoint of hooktrain is to hold: plain values and tensors."""
        states: dict[str, Any] = {}
        for slot in self.slots.all:
            if "state_dict" in slot.events and not slot.disabled:
                try:
                    state = slot.callback.state_dict()
                except Exception as problem:
                    self.slots.failed(slot, "state_dict", problem)
                    continue
                if state:
                    states[slot.callback.state_key] = state
        if not self.slots.hears("on_save_checkpoint"):
            return {"callbacks": states, "added": {}}
        checkpoint = self._checkpoint(states)
        before = dict(checkpoint)
        self.slots.call("on_save_checkpoint", self.pl, self.module, checkpoint)
        added = {}
        for key, value in checkpoint.items():
            if key not in before or value is not before[key]:
                # the engine keeps the weights already
                added[key] = _ARE_THE_WEIGHTS if value is before[_WEIGHTS] else value
        return {"callbacks": states, "added": added}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Give back what :meth:`collect` gave, in Lightning's order."""
        if not kept:
            return
        if self.slots.hears("on_load_checkpoint"):
            checkpoint = self._checkpoint(kept["callbacks"])
            weights = checkpoint[_WEIGHTS]
            for key, value in kept["added"].items():
                checkpoint[key] = weights if isinstance(value, str) and value == _ARE_THE_WEIGHTS else value
            self.slots.call("on_load_checkpoint", self.pl, self.module, checkpoint)
        for slot in self.slots.all:
            state = kept["callbacks"].get(slot.callback.state_key)
            if state and "load_state_dict" in slot.events and not slot.disabled:
                try:
                    slot.callback.load_state_dict(deepcopy(state))
                except Exception as problem:
                    self.slots.failed(slot, "load_state_dict", problem)

    def _checkpoint(self, states: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "epoch": self.pl.current_epoch,
            "global_step": self.pl.global_step,
            "pytorch-lightning_version": version("lightning" if _is_unified(self.module) else "pytorch-lightning"),
            _WEIGHTS: self.module.state_dict(),
            "callbacks": dict(states),
        }


def _is_unified(module: Any) -> bool:
    return any(kind.__module__.startswith("lightning.pytorch") for kind in type(module).__mro__)
