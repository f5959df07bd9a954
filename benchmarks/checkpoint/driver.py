"""Driver that trains and saves checkpoints, in one of several ways.

The specification: ``way`` (a key of ``WAYS``), ``millions`` of parameters, ``steps`` of eight sequences of up to
``length`` tokens, ``every`` how many steps a save, and ``folder`` on the disk that is measured. ``stall_seconds`` is
the time that a save delays the next step: for a synchronous save all of it, for one in the background the copy and what
is left to wait for. All ways write the same weights and optimizer state, and have them on the disk when they are done.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import drive

# torch and hooktrain are imported inside functions, because they belong to the peak memory that is measured

WIDTH = 512


def _state(trainer: Any) -> dict[str, Any]:
    return {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}


def _torch_save(trainer: Any, path: Path, done: Callable[[], None]) -> None:
    import torch

    path.mkdir()
    with (path / "state.pt").open("wb") as stream:
        torch.save(_state(trainer), stream)
        stream.flush()
        os.fsync(stream.fileno())
    done()


def _dcp(trainer: Any, path: Path, done: Callable[[], None]) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(_dcp_state(trainer), checkpoint_id=path)
    done()


def _dcp_async(trainer: Any, path: Path, done: Callable[[], None]) -> Any:
    import torch.distributed.checkpoint as dcp

    saving: Any = dcp.async_save(_dcp_state(trainer), checkpoint_id=path)
    saving.add_done_callback(lambda _: done())
    return saving


def _dcp_state(trainer: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(trainer.model, trainer.optimizer)
    return {"model": model, "optimizer": optimizer}


WAYS: dict[str, Callable[[Any, Path, Callable[[], None]], Any] | None] = {
    "no saves": None,
    "torch.save": _torch_save,
    "DCP": _dcp,
    "DCP in the background": _dcp_async,
    "at once": None,
    "in the background": None,
}
"""The ways to save; the last two are hooktrain's own."""


def _plugin(given: dict[str, Any], folder: Path, findings: dict[str, Any]) -> object:
    from hooktrain import Trainer, hookimpl

    way, every = given["way"], given["every"]
    save = WAYS[way]

    class Clock:
        """Times the run and its saves, and saves in the ways that are not hooktrain's."""

        def __init__(self) -> None:
            self.stalls: list[float] = []
            self.done: list[float] = []
            self.pending: Any = None
            self.saved = 0

        @hookimpl
        def on_train_start(self) -> None:
            self.began = time.perf_counter()

        @hookimpl(tryfirst=True)
        def on_step_end(self, trainer: Trainer) -> None:
            if save is None or trainer.global_step % every:
                return
            began = time.perf_counter()
            self.wait()  # one at a time, as hooktrain does it
            self.saved += 1
            path = folder / f"step-{self.saved}"
            self.pending = save(trainer, path, lambda: self.done.append(time.perf_counter() - began))
            self.stalls.append(time.perf_counter() - began)
            if self.saved > 1 and way != "DCP in the background":  # only the last is kept
                shutil.rmtree(folder / f"step-{self.saved - 1}")

        def wait(self) -> None:
            if self.pending is not None:
                self.pending.result()

        @hookimpl(wrapper=True)
        def save_checkpoint(self) -> Any:
            self.asked = began = time.perf_counter()
            saved = yield
            if way == "at once":
                self.stalls.append(time.perf_counter() - began)
                self.done.append(self.stalls[-1])
            return saved

        @hookimpl
        def on_checkpoint_end(self, trainer: Trainer) -> None:
            if way == "in the background":
                self.stalls.append(trainer.checkpoint_engines[0].last_stall)
                self.done.append(time.perf_counter() - self.asked)

        @hookimpl
        def on_train_end(self) -> None:
            self.wait()
            findings["run_seconds"] = time.perf_counter() - self.began
            if self.stalls:
                findings.update(stall_seconds=self.stalls, save_seconds=self.done)

    return Clock()


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train, and save every few steps."""
    import torch

    from hooktrain.testing import train

    torch.set_num_threads(given["threads"])
    way, findings = given["way"], {}
    with tempfile.TemporaryDirectory(dir=given["folder"]) as name:
        folder = Path(name)
        if way.startswith("DCP"):
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        saves = {
            "type": "full",
            "save_every_n_steps": given["every"],
            "keep_last": 1,
            "asynchronous": way == "in the background",
            "output_dir": str(folder / "saved"),
        }
        recipe = {
            "type": "tiny",
            "run_dir": str(folder / "run"),
            "micro_batch_size": 8,
            "train_iters": given["steps"],
            "data": {"rows": 8 * given["steps"], "eval_rows": 0, "length": given["length"]},
            "model": {"vocab": given["millions"] * 1_000_000 // (2 * WIDTH), "width": WIDTH},
            "optimizer": {"type": "adamw", "lr": 1e-4},
            "strategy": {"dtype": "fp32", "device": "cpu"},
            "console": {"enabled": False},
            "checkpoint": [saves] if way in ("at once", "in the background") else [],
        }
        trainer = train(recipe, _plugin(given, folder, findings))
        findings["parameters"] = sum(parameter.numel() for parameter in trainer.model.parameters())
        newest = max(
            [*folder.glob("step-*"), *folder.glob("saved/step-*")], key=lambda path: path.stat().st_mtime, default=None
        )
        if newest is not None:
            files = [path for path in newest.rglob("*") if path.is_file()]
            findings["on_disk"] = sum(path.stat().st_size for path in files) / 2**20
    return findings


if __name__ == "__main__":
    drive(measure, "torch", "hooktrain")
