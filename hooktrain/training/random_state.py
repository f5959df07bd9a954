"""The random states of a process: what a save holds of them, and what observers leave as it was.

A run that saves and continues, and one that resumes from what it saved, continue from the same state: the one when the
save began. So what hooks draw that only one of the two runs calls, or calls at another moment, must not count.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from hooktrain.plugin.manager import PluginHost

_numpy: Any = sys.modules.get("numpy")  # torch imports it where it is installed

__all__ = ["RandomState", "capture_random_state", "restore_random_state", "unchanged_random_state"]


def capture_random_state() -> dict[str, Any]:
    """Return the random states of torch, Python, numpy and this rank's GPU, as values that a checkpoint can hold."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss]}
    if _numpy is not None:
        name, keys, position, has_gauss, cached = _numpy.random.get_state()
        state["numpy"] = [str(name), keys.tolist(), int(position), int(has_gauss), float(cached)]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # otherwise nothing has been drawn there, and asking would initialize it
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`capture_random_state` returned."""
    torch.set_rng_state(state["torch"].clone())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "numpy" in state and _numpy is not None:
        _numpy.random.set_state(tuple(state["numpy"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].clone())


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Put the random states back as they were, whatever draws numbers inside."""
    before = capture_random_state()
    try:
        yield
    finally:
        restore_random_state(before)


class RandomState:
    """The random states of a run, as far as its saves and a resume decide them.

    Attributes:
        saved_at: the step of the last save, or -1.
    """

    def __init__(self) -> None:
        self.saved_at = -1
        self._saved: Mapping[str, Any] = {}
        self._saves = 0
        self._of_resume: Mapping[str, Any] | None = None

    # ------------------------------------------------------------------------------------------------- saving

    def to_save(self) -> Mapping[str, Any]:
        """Return what a checkpoint engine saves for this rank: the states when the save began."""
        return self._saved if self._saves else capture_random_state()

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """A save of a step begins; it ends with the states that it began with, as does another save of that step."""
        if self.saved_at == step:
            self.after_save()
        else:
            self._saved, self.saved_at = capture_random_state(), step
        self._saves += 1
        try:
            yield
        finally:
            self._saves -= 1
            self.after_save()

    def end_step(self, step: int) -> None:
        """A step, or an epoch, has ended: where it saved, the training continues from the states of the save."""
        if self.saved_at == step:
            self.after_save()

    def after_save(self) -> None:
        """Put back the states of the last save: a resumed run does not repeat what its step drew afterwards."""
        restore_random_state(self._saved)

    # ----------------------------------------------------------------------------------------------- resuming

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state, from which the training continues whatever hooks draw before it does.

        Args:
            state: what :meth:`to_save` returned on this rank.
        """
        self._of_resume = state
        restore_random_state(state)

    def resumed(self, step: int) -> None:
        """Everything of a checkpoint is loaded; where it holds no state of this rank, the present one is taken."""
        self._of_resume = self._of_resume or capture_random_state()
        self._saved, self.saved_at = self._of_resume, step

    def go_on(self) -> None:
        """Put back what a resumed run continues from, unless it has; does nothing in a run that began anew."""
        if self._of_resume is not None:
            restore_random_state(self._of_resume)

    def start(self) -> None:
        """The training continues now: put back what it continues from, and let everything from here on count."""
        self.go_on()
        self.started()

    def started(self) -> None:
        """The training has continued; nothing is put back any more."""
        self._of_resume = None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What is drawn inside counts: the training continues from the states at its end."""
        yield
        if self._of_resume is not None:
            self._of_resume = capture_random_state()

    def keep_observers_out(self, host: PluginHost) -> None:
        """Have what plugins draw in ``on_train_start`` not count, unless they declare ``changes_gradients``."""
        for found in host.implementations("on_train_start"):
            if not host.records[found.plugin_name].info.changes_gradients:
                quiet = _quiet_wrapper if found.wrapper else _quiet
                setattr(found, "function", quiet(found.function))  # noqa: B010 - as in guard_loop_hook
        host.hooks.refresh()


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def quiet(*arguments: Any) -> Any:
        with unchanged_random_state():
            return function(*arguments)

    return quiet


def _quiet_wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def quiet(*arguments: Any) -> Any:
        return _QuietGenerator(function(*arguments))

    return quiet


class _QuietGenerator:
    """A wrapper's generator, without what it draws before its yield and after it."""

    def __init__(self, generator: Generator[None, Any, Any]) -> None:
        self._next = _quiet(generator.__next__)
        self.send, self.throw, self.close = _quiet(generator.send), _quiet(generator.throw), generator.close

    def __next__(self) -> Any:
        return self._next()
