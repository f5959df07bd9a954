"""Classes derived from Lightning's own, whichever package it is installed as."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from hooktrain_callbacks.proxy import unmapped

if TYPE_CHECKING:
    import torch

    from hooktrain_callbacks.lightning_trainer import LightningTrainer

__all__ = ["Classes", "accelerator_of", "derived_classes", "precision_of"]


class Classes(NamedTuple):
    """The result of :func:`derived_classes`.

    Attributes:
        module: a LightningModule around the run's model.
        logger: a Logger whose metrics are written to the next log line.
    """

    module: type[Any]
    logger: type[Any]


@cache
def derived_classes(package: str) -> Classes:
    """Derive the classes from those of ``lightning.pytorch`` or ``pytorch_lightning``."""
    pl = import_module(package)
    loggers = import_module(f"{package}.loggers.logger")

    class RunModule(pl.LightningModule):  # type: ignore[misc,name-defined]
        """The run's model, under ``model``; other attributes are looked up there."""

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

        def forward(self, *arguments: Any, **named: Any) -> Any:
            return self.model(*arguments, **named)

        def log(self, name: str, value: Any, *_: Any, sync_dist: bool = False, **more: Any) -> None:
            """Add a value to the next log line, and to the metrics that other callbacks see."""
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
                raise unmapped(trainer.handler, f"pl_module.{name}") from None

        def __getstate__(self) -> dict[str, Any]:
            return {**self.__dict__, "_trainer": None}  # copies are of the model, not of the run

    class RunLogger(loggers.Logger):  # type: ignore[misc,name-defined]
        """Adds what callbacks log to hooktrain's own log lines."""

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

        def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
            """Do nothing: the recipe is in the run directory."""

    return Classes(RunModule, RunLogger)


def accelerator_of(package: str, device: torch.device) -> Any:
    """Return Lightning's accelerator for a device, which measures its use."""
    accelerators = import_module(f"{package}.accelerators")
    return accelerators.CUDAAccelerator() if device.type == "cuda" else accelerators.CPUAccelerator()


def precision_of(package: str, dtype: torch.dtype | None, device: torch.device) -> Any:
    """Return Lightning's precision plugin for the type that the strategy computes in."""
    plugins = import_module(f"{package}.plugins.precision")
    name = {"torch.bfloat16": "bf16-mixed", "torch.float16": "16-mixed"}.get(str(dtype))
    return plugins.Precision() if name is None else plugins.MixedPrecision(name, device.type)
