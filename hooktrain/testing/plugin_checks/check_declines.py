"""Checks that a factory or a loop hook does nothing before it leaves the work to another plugin."""

from __future__ import annotations

import functools
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

from hooktrain.compare import digest
from hooktrain.compat import TorchDispatchMode
from hooktrain.hookspecs import FACTORIES, LOOP_HOOKS
from hooktrain.testing.plugin_checks.kit import Broken, Kit
from hooktrain.testing.plugin_checks.plugin_reference import Spec, prepared
from hooktrain.training.trainer import Trainer

__all__ = ["check_declines"]


def check_declines(kit: Kit) -> None:
    """Check that a factory that returns None, and a loop hook that returns ``NotImplemented``, have no side effects."""
    done = kit.start("declines", f"{__name__}:_side_effects", spec=kit.spec)
    found = kit.need(done, "calling the plugin's factories and loop hooks for a part that is not the plugin's")
    if found:
        raise Broken(
            "\n".join(found),
            "each factory is called for every part of its kind until one returns it, and a loop hook in every step; for"
            " another plugin's part, a factory looks at the type of the config and at nothing else",
            "begin with `if not isinstance(config, MyConfig): return None`, and import, read and allocate after it; a"
            " loop hook that leaves the work to others returns NotImplemented before it does anything else",
        )


class Touched(Exception):
    """A factory used an argument before it knew that the part is its own."""


@attrs.frozen
class OtherConfig:
    """A config class that no plugin knows."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):  # isinstance() reads __class__
            return object.__getattribute__(self, name)
        raise Touched(f"reads config.{name} before it knows that the config is its own")


class Untouchable:
    """An argument that a factory needs for a part of its own, and must not use for another's."""

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
    """Records the operations of torch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class _Recording(threading.local):
    """Whether audit events of this thread are recorded."""

    on = False


_recording = _Recording()
_events: list[str] = []


def _audit(event: str, arguments: Any) -> None:
    if not _recording.on:
        return
    if event == "open" and "__pycache__" not in str(arguments[0]) and not str(arguments[0]).endswith((".py", ".pyc")):
        _events.append(f"opens {arguments[0]}")
    elif event in ("os.mkdir", "os.listdir", "os.remove", "os.rename", "subprocess.Popen", "socket.connect"):
        _events.append(f"calls {event}({arguments[0] if arguments else ''})")


@contextmanager
def _watched(seen: list[str]) -> Iterator[None]:
    """Append side effects to ``seen``: imports, files, torch's operations, random numbers, threads."""
    before, modules, threads = _random(), set(sys.modules), set(threading.enumerate())
    _events.clear()
    with _Operations() as operations:
        _recording.on = True
        try:
            yield
        finally:
            _recording.on = False
    seen += dict.fromkeys(_events)
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


def _side_effects(spec: Spec) -> list[str]:
    """Find the side effects of factories, else of loop hooks; in a process of its own."""
    _random()
    sys.addaudithook(_audit)
    return _factories(spec) or _loop_hooks(spec)


def _factories(spec: Spec) -> list[str]:
    """Find the side effects of factories for a config that no plugin has registered."""
    made = prepared(spec, "unused")
    found = []
    for hook in (*FACTORIES, "fingerprint_source", "preview_examples"):
        for implementation in made.host.implementations(hook):
            if implementation.plugin_name == made.name and not implementation.wrapper:
                found += [f"{hook}: {what}" for what in _tried(implementation)]
    return found


def _tried(implementation: Any) -> list[str]:
    """Find the side effects and the result of one factory for another plugin's part."""
    if "config" not in implementation.argnames:
        return ["does not take config, so it builds every plugin's part; add the parameter config"]
    config, seen = OtherConfig(), list[str]()
    arguments = [config if name == "config" else Untouchable(name) for name in implementation.argnames]
    try:
        with _watched(seen):
            result = implementation.function(*arguments)
    except Touched as problem:
        return [str(problem)]
    except Exception as problem:
        return [*seen, f"raises {type(problem).__name__}: {problem}"]
    if inspect.isgenerator(result):
        return [*seen, "is a generator without @hookimpl(wrapper=True), and a generator is no part"]
    if result is not None:
        seen.append(f"returns a {type(result).__name__} for a config that is not its own, and so replaces the part")
    return seen


def _loop_hooks(spec: Spec) -> list[str]:
    """Find the side effects of loop hooks that return NotImplemented, in a run that does not use the plugin."""
    folder = os.path.join(os.getcwd(), "run")
    overrides = {"run_dir": folder, "train_iters": 2, "epochs": None, "checkpoint": [], "eval_interval": 1}
    made = prepared(spec, "unused", overrides=overrides)
    loop_hooks = [
        (hook, found)
        for hook in LOOP_HOOKS
        for found in made.host.implementations(hook)
        if found.plugin_name == made.name and not found.wrapper
    ]
    if not loop_hooks:
        return []
    found: list[str] = []
    trainer = Trainer(made.recipe, made.host)
    for hook, implementation in loop_hooks:
        watched = _watching(hook, implementation.function, trainer, found)
        setattr(implementation, "function", watched)  # noqa: B010 - final for type checkers
    made.host.hooks.refresh()
    trainer.run()
    return list(dict.fromkeys(found))


def _watching(hook: str, function: Callable[..., Any], trainer: Trainer, found: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        before, seen = attrs.asdict(trainer.state), list[str]()
        with _watched(seen):
            result = function(*arguments)
        if result is None or result is NotImplemented:
            if attrs.asdict(trainer.state) != before:
                seen.append("changes trainer.state")
            found.extend(f"{hook}: leaves the step to others, but {what} before" for what in seen)
        return result

    return functools.wraps(function)(call)
