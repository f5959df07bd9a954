"""Nothing waits for the device between two log lines.

The run has its model on torch's device ``meta``, whose tensors have shapes and no values, while batches of the host are
real. Whoever asks for a value is written down with the line that asks, and gets a one.
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from hooktrain.builtins.device_sync import DEVICE_SYNCS
from hooktrain.errors import HooktrainError
from hooktrain.plugin.validation import device_rule
from hooktrain.testing.plugin_checks.kit import Broken, Kit, Unjudged
from hooktrain.testing.plugin_checks.plugin_reference import Spec, prepared
from hooktrain.training.trainer import Trainer

__all__ = ["check_device"]


def check_device(kit: Kit) -> None:
    """Hooks of the plugin read from the device only where their documentation says that they may wait for it."""
    done = kit.start("device", f"{__name__}:_reads", spec=kit.spec)
    syncs, limit = done.result["syncs"] if done.status == 0 else 0.0, kit.options.device_syncs
    if syncs > limit:
        allowed = f"{syncs:g} device syncs a step, and {limit:g} are allowed:\n" if limit else ""
        raise Broken(
            allowed + "\n".join(done.result["reads"][:8]),
            "between two log lines nothing waits for the device: a wait in every step costs a GPU milliseconds",
            "keep tensors as they are, detached, and return them from collect_metrics, which are read all at once; read"
            " values in on_log, or in hooks whose documentation says that they may wait (`hooktrain hooks NAME`); a"
            " plugin that has to wait says how often a step with conformance(device_syncs=...)",
        )
    if done.status != 0:
        why = (done.output.strip().splitlines() or ["nothing was said"])[-1]
        raise Unjudged(f"this recipe does not run on a device without values, so that no wait can be seen: {why}")
    if done.result["failed"]:
        raise Unjudged(
            "this recipe does not run on a device without values, and no wait of the plugin was seen until"
            f" {done.result['failed']}"
        )
    kit.notes["device"] = f"{syncs:g} device syncs a step"


class _Values(TorchDispatchMode):
    """Notes who asks for a value of a tensor on ``meta``, and goes on with a one."""

    def __init__(self, judge: _Judge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.judge = judge

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        away = [value for value in flat if isinstance(value, Tensor) and value.is_meta]
        name = str(func).removeprefix("aten.").partition(".")[0]
        if not away:
            return func(*args, **kwargs)
        what = DEVICE_SYNCS.get(name, "")
        if name == "_local_scalar_dense":
            self.judge.read(what)
            return True if away[0].dtype == torch.bool else 1.0 if away[0].dtype.is_floating_point else 1
        if name in ("equal", "is_nonzero"):
            self.judge.read(what)
            return True
        to = kwargs.get("device")
        if name == "_to_copy" and to is not None and torch.device(to).type != "meta":
            self.judge.read(what)
            return torch.ones(away[0].shape, dtype=kwargs.get("dtype") or away[0].dtype)
        if name == "copy_" and isinstance(args[0], Tensor) and not args[0].is_meta:
            self.judge.read(what)
            return args[0].fill_(1)
        if name in ("nonzero", "masked_select", "_unique2", "unique_dim"):
            self.judge.read(what)
            return func(*tree_map(_with_values, args), **kwargs)
        return func(*args, **kwargs)


def _with_values(value: Any) -> Any:
    return torch.ones(value.shape, dtype=value.dtype) if isinstance(value, Tensor) and value.is_meta else value


class _Judge:
    """Decides whether a read is the plugin's, and whether it may be."""

    def __init__(self, implementations: Mapping[CodeType, str], package: str) -> None:
        self.implementations, self.package = implementations, package
        self.found: list[str] = []
        self.count = 0
        self.quiet = {Trainer.log.__code__, Trainer.evaluate.__code__, Trainer.checkpoint.__code__}

    def read(self, what: str) -> None:
        """Somebody reads: look at the stack from the inside to the outside."""
        frame: FrameType | None = sys._getframe(2)
        mine: FrameType | None = None
        hook, step, quiet = "", False, False
        while frame is not None:
            code = frame.f_code
            if mine is None and code.co_filename.startswith(self.package):
                mine = frame
            if not hook and code in self.implementations:
                hook, mine = self.implementations[code], mine or frame
            step = step or code is Trainer.epoch.__code__
            quiet = quiet or code in self.quiet
            frame = frame.f_back
        if mine is None or (quiet and not hook):
            return
        if _may_wait(hook) if hook and device_rule(hook) else quiet or not step:
            return
        self.count += 1
        path, line = Path(mine.f_code.co_filename), mine.f_lineno
        lines = path.read_text(encoding="utf-8").splitlines()
        place = f"{hook or 'between two log lines'}, {path.name}:{line}"
        text = f"{place}: {what}: {lines[line - 1].strip() if line <= len(lines) else ''}"
        if text not in self.found:
            self.found.append(text)


def _may_wait(hook: str) -> bool:
    return device_rule(hook).startswith(("may", "has just"))


def _as_on_a_processor() -> None:
    """Autocast and random numbers on ``meta``, which torch has for real devices only."""
    asked, made = torch.is_autocast_enabled, torch.autocast.__init__

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> Any:
            place = "cpu" if torch.device(device).type == "meta" else device
            return super().__new__(cls, place)  # type: ignore[call-arg]

    def init(self: Any, device_type: str, *arguments: Any, **more: Any) -> None:
        made(self, "cpu" if device_type == "meta" else device_type, *arguments, **more)

    mended = {"is_autocast_enabled": lambda device="cuda": device != "meta" and asked(device), "Generator": Generator}
    vars(torch).update(mended)
    setattr(torch.autocast, "__init__", init)  # noqa: B010 - a method, to type checkers


def _reads(spec: Spec) -> dict[str, Any]:
    """Who reads from the device in a run of the recipe; in a process of its own."""
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
    judge, failed = _Judge(codes, package), ""
    vars(torch.cuda)["synchronize"] = lambda *_: judge.read(
        DEVICE_SYNCS["synchronize"]
    )  # without a GPU it would only raise
    _as_on_a_processor()
    trainer = Trainer(made.recipe, made.host)
    with _Values(judge):
        try:
            trainer.run()
        except HooktrainError as problem:
            failed = f"step {trainer.global_step}: {problem}"
        except (NotImplementedError, RuntimeError, TypeError) as problem:
            traceback.print_exc()
            failed = f"step {trainer.global_step}: {type(problem).__name__}: {str(problem).splitlines()[0]}"
    return {"reads": judge.found, "syncs": judge.count / max(trainer.global_step, 1), "failed": failed}
