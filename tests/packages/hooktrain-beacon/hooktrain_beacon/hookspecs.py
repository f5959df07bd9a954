"""The hook that this plugin adds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hooktrain import HooktrainWarning, hookspec

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["describe_run"]

_RETIRED = {"run_dir": HooktrainWarning("the parameter 'run_dir' is retired; take trainer.run_dir")}


@hookspec(warn_on_impl_args=_RETIRED)
def describe_run(trainer: Trainer, run_dir: Path) -> Mapping[str, str]:
    """Describe a run for the server.

    Called: by ``beacon``, in ``on_train_start``, when the recipe has a server.
    Ranks: rank 0.
    Device: must not wait for it.

    Args:
        trainer: the trainer.
        run_dir: retired, ``trainer.run_dir``.

    Returns:
        Names and texts.

    Default: none.
    """
