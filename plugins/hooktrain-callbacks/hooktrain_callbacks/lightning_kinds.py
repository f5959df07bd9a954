"""Classes that are derived from Lightning's own, whichever package it is installed as."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from hooktrain_callbacks.standin import unmapped

if TYPE_CHECKING:
    import torch

    from hooktrain_callbacks.lightning_trainer import LightningTrainer

__all__ = ["Kinds", "accelerator_of", "kinds", "precision_of"]


class Kinds(NamedTuple):
    """What :func:`kinds` makes.

    Attributes:
        module: a LightningModule around the run's model.
        logger: a Logger whose metrics stand in the next log line.
    """

    module: type[Any]
    logger: type[Any]


@cache
def kinds(package: str) -> Kinds:
    """The classes for ``lightning.pytorch`` or ``pytorch_lightning``."""
    pl = import_module(package)
    loggers = import_module(f"{package}.loggers.logger")

    class RunModule(pl.LightningModule):  # type: ignore[misc,name-defined]
        """The run's model, under ``model``; what it does not have itself is looked up there."""

        def __init__(self, model: Any, trainer: LightningTrainer, device: torch.device) -> None:
            super().__init__()
            self.model, self._device = model, device
            self.__dict__["_trainer"] = trainer

        @property
        def trainer(self) -> Any:
            return self.__dict__["_trainer"]

        @property
        def loggers(self) -> list[Any]:
            return list(self.trainer.loggers)

        @property
        def logger(self) -> Any:
            return self.trainer.logger

        def forward(self, *given: Any, **named: Any) -> Any:
            return self.model(*given, **named)

        def log(self, name: str, value: Any, *_: Any, sync_dist: bool = False, **more: Any) -> None:
            """Have a value in the next log line, and where other callbacks look for metrics."""
            self.log_dict({name: value}, sync_dist=sync_dist)

        def log_dict(self, dictionary: Mapping[str, Any], *_: Any, sync_dist: bool = False, **more: Any) -> None:
            trainer = self.trainer
            if sync_dist:
                dictionary = {name: trainer.strategy.reduce(value) for name, value in dictionary.items()}
            trainer.log_soon(dictionary)
            trainer.callback_metrics.update(dictionary)

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                model = self.__dict__.get("_modules", {}).get("model")
                if name.startswith("_") or model is None:
                    raise
                if hasattr(model, name):
                    return getattr(model, name)
                trainer = self.__dict__.get("_trainer")
                if trainer is None:
                    raise
                raise unmapped(trainer._slots, f"pl_module.{name}") from None

        def __getstate__(self) -> dict[str, Any]:
            return {**self.__dict__, "_trainer": None}  # copies are of the model, not of the run

    class RunLogger(loggers.Logger):  # type: ignore[misc,name-defined]
        """Puts what callbacks log into hooktrain's own log lines."""

        def __init__(self, trainer: LightningTrainer) -> None:
            super().__init__()
            self._trainer = trainer

        @property
        def name(self) -> str:
            return "hooktrain"

        @property
        def version(self) -> str:
            return ""

        @property
        def save_dir(self) -> str:
            return self._trainer.default_root_dir

        def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
            self._trainer.log_soon(metrics)

        def log_hyperparams(self, *given: Any, **named: Any) -> None:
            """The recipe is in the run directory."""

    return Kinds(RunModule, RunLogger)


def accelerator_of(package: str, device: torch.device) -> Any:
    """Lightning's own accelerator for a device, which can say what it is doing."""
    accelerators = import_module(f"{package}.accelerators")
    return accelerators.CUDAAccelerator() if device.type == "cuda" else accelerators.CPUAccelerator()


def precision_of(package: str, dtype: Any, device: torch.device) -> Any:
    """Lightning's own precision plugin for what the strategy computes in."""
    plugins = import_module(f"{package}.plugins.precision")
    name = {"torch.bfloat16": "bf16-mixed", "torch.float16": "16-mixed"}.get(str(dtype))
    return plugins.Precision() if name is None else plugins.MixedPrecision(name, device.type)
