"""Checks that no hook waits for the device between two log lines.

The run has its model on torch's device ``meta``, whose tensors have shapes and no values, while batches of the host are
real. Each read of a value is recorded with its line of code, and returns a one.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from hooktrain.compat import TorchDispatchMode, caller_frame, tree_flatten, tree_map
from hooktrain.errors import HooktrainError
from hooktrain.plugin.validation import device_rule
from hooktrain.testing.plugin_checks.kit import Broken, Kit, NotApplicable
from hooktrain.testing.plugin_checks.plugin_reference import Spec, prepared
from hooktrain.training.trainer import Trainer

__all__ = ["check_device"]

_SYNCS: Mapping[str, str] = {
    "_local_scalar_dense": "reads a value",
    **{name: f"compares values ({name})" for name in ("equal", "is_nonzero")},
    **dict.fromkeys(("nonzero", "masked_select", "_unique2", "unique_dim"), "asks how many values there are"),
    **dict.fromkeys(("_to_copy", "copy_"), "copies a tensor to the host"),
}
"""Operations of ATen that wait for the device, and what each does."""


def check_device(kit: Kit) -> None:
    """Check that hooks of the plugin read from the device only where their documentation allows it."""
    done = kit.start("device", f"{__name__}:_find_reads", spec=kit.spec)
    syncs, limit = done.result["syncs"] if done.status == 0 else 0.0, kit.options.device_syncs
    if syncs > limit:
        allowed = f"{syncs:g} device syncs a step, and {limit:g} are allowed:\n" if limit else ""
        raise Broken(
            allowed + "\n".join(done.result["reads"][:8]),
            "between two log lines nothing waits for the device: a device sync in every step costs a GPU milliseconds",
            "keep detached tensors and return them from collect_metrics, where the engine reads all of them at once; or"
            " read values in on_log, or in another hook that may wait for the device (`hooktrain hooks NAME` shows it);"
            " or allow device syncs with conformance(device_syncs=...)",
        )
    if done.status != 0:
        why = (done.output.strip().splitlines() or ["no output"])[-1]
        raise NotApplicable(f"this recipe does not run on the meta device, so device syncs cannot be found: {why}")
    if done.result["failed"]:
        raise NotApplicable(
            "this recipe does not run on the meta device, and no device sync of the plugin was found before"
            f" {done.result['failed']}"
        )
    kit.notes["device"] = f"{syncs:g} device syncs a step"


class _Values(TorchDispatchMode):
    """Records each read of a value of a tensor on ``meta``, and returns a one."""

    def __init__(self, reads: _Reads) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        away = [value for value in flat if isinstance(value, Tensor) and value.is_meta]
        name = str(func).removeprefix("aten.").partition(".")[0]
        if not away:
            return func(*args, **kwargs)
        what = _SYNCS.get(name, "")
        if name == "_local_scalar_dense":
            self.reads.add(what)
            return True if away[0].dtype == torch.bool else 1.0 if away[0].dtype.is_floating_point else 1
        if name in ("equal", "is_nonzero"):
            self.reads.add(what)
            return True
        to = kwargs.get("device")
        if name == "_to_copy" and to is not None and torch.device(to).type != "meta":
            self.reads.add(what)
            return torch.ones(away[0].shape, dtype=kwargs.get("dtype") or away[0].dtype)
        if name == "copy_" and isinstance(args[0], Tensor) and not args[0].is_meta:
            self.reads.add(what)
            return args[0].fill_(1)
        if name in ("nonzero", "masked_select", "_unique2", "unique_dim"):
            self.reads.add(what)
            return func(*tree_map(_with_values, args), **kwargs)
        return func(*args, **kwargs)


def _with_values(value: Any) -> Any:
    return torch.ones(value.shape, dtype=value.dtype) if isinstance(value, Tensor) and value.is_meta else value


class _Reads:
    """Records the plugin's reads that are not allowed."""

    def __init__(self, implementations: Mapping[CodeType, str], package: str) -> None:
        self.implementations, self.package = implementations, package
        self.found: list[str] = []
        self.count = 0
        self.allowed = {Trainer.log.__code__, Trainer.evaluate.__code__, Trainer.checkpoint.__code__}

    def add(self, what: str) -> None:
        """Record a read unless it is the engine's or allowed, by the frames of its callers."""
        frame: FrameType | None = caller_frame(3)
        mine: FrameType | None = None
        hook, step, allowed = "", False, False
        while frame is not None:
            code = frame.f_code
            if mine is None and code.co_filename.startswith(self.package):
                mine = frame
            if not hook and code in self.implementations:
                hook, mine = self.implementations[code], mine or frame
            step = step or code is Trainer.epoch.__code__
            allowed = allowed or code in self.allowed
            frame = frame.f_back
        if mine is None or (allowed and not hook):
            return
        if _may_wait(hook) if hook and device_rule(hook) else allowed or not step:
            return
        self.count += 1
        path, line = Path(mine.f_code.co_filename), mine.f_lineno
        lines = path.read_text(encoding="utf-8").splitlines()
        place = f"{hook or 'between two log lines'}, {path.name}:{line}"
        text = f"{place}: {what}: {lines[line - 1].strip() if line <= len(lines) else ''}"
        if text not in self.found:
            self.found.append(text)


def _may_wait(hook: str) -> bool:
    return device_rule(hook).startswith("may")


def _support_meta() -> None:
    """Add autocast and random generators for ``meta``, which torch has for real devices only."""
    is_enabled, autocast_init = torch.is_autocast_enabled, torch.autocast.__init__

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> Any:
            place = "cpu" if torch.device(device).type == "meta" else device
            return super().__new__(cls, place)  # type: ignore[call-arg]

    def init(self: Any, device_type: str, *arguments: Any, **more: Any) -> None:
        autocast_init(self, "cpu" if device_type == "meta" else device_type, *arguments, **more)

    names = {
        "is_autocast_enabled": lambda device="cuda": device != "meta" and is_enabled(device),
        "Generator": Generator,
    }
    vars(torch).update(names)
    setattr(torch.autocast, "__init__", init)  # noqa: B010 - a method, to type checkers


def _find_reads(spec: Spec) -> dict[str, Any]:
    """Find the plugin's reads from the device in a run of the recipe; in a process of its own."""
    torch.set_num_threads(1)
    overrides = {
        "run_dir": "run",
        "train_iters": 4,
        "epochs": None,
        "log_interval": 4,
        "checkpoint": [],
        "eval_interval": 0,
    }
    made = prepared(spec, "with", overrides={**overrides, "strategy.device": "meta"})
    codes = {
        inspect.unwrap(found.function).__code__: hook
        for hook in made.host.records[made.name].hooks
        for found in made.host.implementations(hook)
        if found.plugin_name == made.name
    }
    module = sys.modules[spec.reference.module]
    file = Path(module.__file__ or "")
    package = str(file.parent) if file.name == "__init__.py" or module.__package__ else str(file)
    reads, failed = _Reads(codes, package), ""
    vars(torch.cuda)["synchronize"] = lambda *_: reads.add("waits for the device (synchronize)")  # raises without a GPU
    _support_meta()
    trainer = Trainer(made.recipe, made.host)
    with _Values(reads):
        try:
            trainer.run()
        except HooktrainError as problem:
            failed = f"step {trainer.global_step}: {problem}"
        except (NotImplementedError, RuntimeError, TypeError) as problem:
            traceback.print_exc()
            failed = f"step {trainer.global_step}: {type(problem).__name__}: {str(problem).splitlines()[0]}"
    return {"reads": reads.found, "syncs": reads.count / max(trainer.global_step, 1), "failed": failed}
