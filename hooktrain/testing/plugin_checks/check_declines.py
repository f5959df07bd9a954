"""A factory or a loop hook that leaves the work to others has done nothing before it says so."""

from __future__ import annotations

import inspect
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hooktrain.compare import digest
from hooktrain.hookspecs import FACTORIES, LOOP_HOOKS
from hooktrain.testing.plugin_checks.kit import Broken, Kit
from hooktrain.testing.plugin_checks.plugin_reference import Spec, prepared
from hooktrain.training.trainer import Trainer

__all__ = ["check_declines"]


def check_declines(kit: Kit) -> None:
    """Factories given a config of somebody else's, and loop hooks that decline, leave no trace."""
    done = kit.start("declines", f"{__name__}:_traces", spec=kit.spec)
    found = kit.need(done, "asking the plugin's factories and loop hooks for a part that is not theirs")
    if found:
        raise Broken(
            "\n".join(found),
            "every factory is asked for every part, and a loop hook in every step: who is not meant has looked at the"
            " type of the config, and at nothing else",
            "begin with `if not isinstance(config, MyConfig): return None`, and import, read and allocate after it; a"
            " loop hook declines with `return NotImplemented` before it has done anything",
        )


class Touched(Exception):
    """Somebody used what was none of their business."""


@attrs.frozen
class SomebodyElsesConfig:
    """A config class that no plugin knows."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):  # isinstance() reads __class__
            return object.__getattribute__(self, name)
        raise Touched(f"reads config.{name} before it knows that the config is its own")


class Untouchable:
    """What a factory needs for a part of its own, and must not use for another's."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return Untouchable
        raise Touched(f"uses {object.__getattribute__(self, '_name')}.{name} before it knows that the part is its own")


def _refusing(how: str) -> Callable[..., Any]:
    def refuse(self: Any, *_: Any) -> Any:
        raise Touched(f"uses {object.__getattribute__(self, '_name')} ({how}) before it knows that the part is its own")

    return refuse


for _how in ("__bool__", "__len__", "__iter__", "__getitem__", "__call__", "__str__", "__fspath__", "__setattr__"):
    setattr(Untouchable, _how, _refusing(_how))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations of torch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


_heard: list[str] = []
_listening = threading.local()


def _hear(event: str, arguments: Any) -> None:
    if not getattr(_listening, "on", False):
        return
    if event == "open" and "__pycache__" not in str(arguments[0]) and not str(arguments[0]).endswith((".py", ".pyc")):
        _heard.append(f"opens {arguments[0]}")
    elif event in ("os.mkdir", "os.listdir", "os.remove", "os.rename", "subprocess.Popen", "socket.connect"):
        _heard.append(f"calls {event}({arguments[0] if arguments else ''})")


@contextmanager
def _watched(seen: list[str]) -> Iterator[None]:
    """Appends to ``seen`` what happens inside: imports, files, torch's operations, random numbers, threads."""
    before, modules, threads = _random(), set(sys.modules), set(threading.enumerate())
    del _heard[:]
    with _Operations() as operations:
        _listening.on = True
        try:
            yield
        finally:
            _listening.on = False
    seen += dict.fromkeys(_heard)
    new = sorted(set(sys.modules) - modules)
    if new:
        seen.append(f"imports {new[0]}" + (f" and {len(new) - 1} more" if len(new) > 1 else ""))
    if operations.names:
        seen.append(f"computes with torch ({', '.join(dict.fromkeys(operations.names[:3]))})")
    if _random() != before:
        seen.append("draws random numbers")
    seen += [f"starts the thread {thread.name}" for thread in set(threading.enumerate()) - threads]


def _random() -> Any:
    return digest(torch.get_rng_state()), random.getstate()


def _traces(spec: Spec) -> list[str]:
    """What factories do that are not meant, else what loop hooks do; in a process of its own."""
    _random()
    sys.addaudithook(_hear)
    return _factories(spec) or _loop_hooks(spec)


def _factories(spec: Spec) -> list[str]:
    """What the factories do with a config that nobody has registered."""
    made = prepared(spec, "idle")
    found = []
    for hook in (*FACTORIES, "fingerprint_source", "preview_examples"):
        for implementation in made.host.implementations(hook):
            if implementation.plugin_name == made.name and not implementation.wrapper:
                found += [f"{hook}: {what}" for what in _asked(implementation)]
    return found


def _asked(implementation: Any) -> list[str]:
    """What one factory does, and answers, when it is asked for somebody else's part."""
    if "config" not in implementation.argnames:
        return ["does not look at config, so that it answers for every part; name the parameter config"]
    config, seen = SomebodyElsesConfig(), list[str]()
    given = [config if name == "config" else Untouchable(name) for name in implementation.argnames]
    try:
        with _watched(seen):
            answer = implementation.function(*given)
    except Touched as problem:
        return [str(problem)]
    except Exception as problem:
        return [*seen, f"raises {type(problem).__name__}: {problem}"]
    if inspect.isgenerator(answer):
        return [*seen, "is a generator without @hookimpl(wrapper=True), and a generator is no part"]
    if answer is not None:
        seen.append(f"answers with {type(answer).__name__} for a config that is not its own, and takes others' parts")
    return seen


def _loop_hooks(spec: Spec) -> list[str]:
    """What loop hooks that decline have done before they do, in a run that does not use the plugin."""
    folder = os.path.join(os.getcwd(), "run")
    overrides = {"run_dir": folder, "train_iters": 2, "epochs": None, "checkpoint": [], "eval_interval": 1}
    made = prepared(spec, "idle", overrides=overrides)
    claimed = [
        (hook, found)
        for hook in LOOP_HOOKS
        for found in made.host.implementations(hook)
        if found.plugin_name == made.name and not found.wrapper
    ]
    if not claimed:
        return []
    found: list[str] = []
    trainer = Trainer(made.recipe, made.host)
    for hook, implementation in claimed:
        watched = _watching(hook, implementation.function, trainer, found)
        setattr(implementation, "function", watched)  # noqa: B010 - final for type checkers
    made.host.hooks.refresh()
    trainer.run()
    return list(dict.fromkeys(found))


def _watching(hook: str, function: Callable[..., Any], trainer: Trainer, found: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        before, seen = attrs.asdict(trainer.state), list[str]()
        with _watched(seen):
            answer = function(*arguments)
        if answer is None or answer is NotImplemented:
            if attrs.asdict(trainer.state) != before:
                seen.append("changes trainer.state")
            found.extend(f"{hook}: declines, but {what} before it does" for what in seen)
        return answer

    call.__wrapped__ = function  # type: ignore[attr-defined]
    return call
