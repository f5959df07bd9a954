"""The state of Lightning callbacks in hooktrain's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain_callbacks.callback_handler import CallbackHandler
    from hooktrain_callbacks.lightning_trainer import LightningTrainer

__all__ = ["LightningState"]

_WEIGHTS = "state_dict"
_ARE_THE_WEIGHTS = "hooktrain: the model's own weights"


class LightningState:
    """Saves and restores ``state_dict`` and what ``on_save_checkpoint`` adds to or changes in a checkpoint.

    Args:
        handler: the callbacks.
        pl: the trainer that callbacks see.
        module: the module that callbacks see.
    """

    def __init__(self, handler: CallbackHandler, pl: LightningTrainer, module: Any) -> None:
        self.handler, self.pl, self.module = handler, pl, module

    def collect(self) -> dict[str, Any]:
        """Return what a checkpoint of hooktrain holds: plain values and tensors."""
        states: dict[str, Any] = {}
        for loaded in self.handler.callbacks:
            if "state_dict" in loaded.events and not loaded.disabled:
                try:
                    state = loaded.callback.state_dict()
                except Exception as problem:
                    self.handler.failed(loaded, "state_dict", problem)
                    continue
                if state:
                    states[loaded.callback.state_key] = state
        if not self.handler.implements("on_save_checkpoint"):
            return {"callbacks": states, "added": {}}
        checkpoint = self._checkpoint(states)
        before = dict(checkpoint)
        self.handler.call("on_save_checkpoint", self.pl, self.module, checkpoint)
        added = {}
        for key, value in checkpoint.items():
            if key not in before or value is not before[key]:
                # the engine keeps the weights already
                added[key] = _ARE_THE_WEIGHTS if value is before[_WEIGHTS] else value
        return {"callbacks": states, "added": added}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Restore what :meth:`collect` returned, in Lightning's order."""
        if not kept:
            return
        if self.handler.implements("on_load_checkpoint"):
            checkpoint = self._checkpoint(kept["callbacks"])
            weights = checkpoint[_WEIGHTS]
            for key, value in kept["added"].items():
                checkpoint[key] = weights if isinstance(value, str) and value == _ARE_THE_WEIGHTS else value
            self.handler.call("on_load_checkpoint", self.pl, self.module, checkpoint)
        for loaded in self.handler.callbacks:
            state = kept["callbacks"].get(loaded.callback.state_key)
            if state and "load_state_dict" in loaded.events and not loaded.disabled:
                try:
                    loaded.callback.load_state_dict(deepcopy(state))
                except Exception as problem:
                    self.handler.failed(loaded, "load_state_dict", problem)

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
