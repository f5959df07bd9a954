"""The hooks as the loop calls them: pluggy's semantics, without its cost where nothing is to be decided.

A pluggy call costs over a microsecond even when nobody implements the hook, and the loop makes a dozen a step. So each
hook becomes a function that calls its implementations, and the wrappers around them, in pluggy's order and does nothing
else. The view is rebuilt whenever a plugin comes or goes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, MutableSequence, Sequence
from functools import lru_cache
from types import CodeType
from typing import TYPE_CHECKING, Any, cast

import pluggy
from pluggy import HookImpl

from hooktrain.errors import LoopHookError, PluginError, failure_of
from hooktrain.hookspecs import EVENTS, LOOP_HOOKS

if TYPE_CHECKING:
    from hooktrain.training.held_effects import HeldEffects

__all__ = ["Hooks", "guard_loop_hook"]

_DONE = object()
"""What ``next`` gives for a wrapper that ends without coming to its yield."""
_REPORTED = ("run_train", "run_epoch")
"""Loop hooks whose wrappers are reported when they end an error: what is left of the training would be skipped."""

Swallowed = Callable[[str, str, BaseException], None]
"""Receives a hook, the plugin whose wrapper has ended an error in it, and the error."""
_OWN = {"_held", "_manager", "_position", "_swallowed", "names"}
"""Attributes of :class:`Hooks` that are no hooks."""


class Hooks:
    """Every hook as a callable attribute that takes keyword arguments; made by ``PluginHost``.

    Attributes:
        names: the hooks whose number is noted while they run.
    """

    def __init__(self, manager: pluggy.PluginManager, swallowed: Swallowed | None = None) -> None:
        self._manager = manager
        self._swallowed = swallowed
        self.names: Sequence[str] = ()
        self._position: MutableSequence[int] = array("q", [-1])
        self._held: HeldEffects | None = None

    def refresh(self) -> None:
        """Have the hooks bound anew, each when it is next asked for, after plugins came or went."""
        for name in vars(self).keys() - _OWN:
            delattr(self, name)

    def note_position(self, position: MutableSequence[int], names: Sequence[str]) -> None:
        """From now on keep the number of the innermost hook that is running in ``position[0]``; -1 is none.

        Args:
            position: numbers in memory that whoever wants to know can read at any time.
            names: the hooks that are numbered, in this order.
        """
        self._position, self.names = position, names
        self.refresh()

    def all_names(self) -> list[str]:
        """Return the names of all hooks."""
        return sorted(name for name in vars(self._manager.hook) if not name.startswith("_"))

    def hold(self, held: HeldEffects) -> None:
        """Have what implementations of events change compared from now on."""
        self._held = held
        self.refresh()

    def __getattr__(self, name: str) -> Callable[..., Any]:  # only reached for names that are not bound
        caller = vars(self._manager.hook).get(name) if name not in _OWN else None
        if caller is None:
            raise AttributeError(f"no hook is named '{name}'; hooks are declared in hooktrain.hookspecs or by a plugin")
        number = self.names.index(name) if name in self.names else None
        swallowed = self._swallowed if name in _REPORTED else None
        bound: Any = caller
        if caller.spec is not None and not caller.is_historic():
            number = number if caller.get_hookimpls() else None
            bound = _compiled(name, caller, self._position, number, swallowed, self._held)
        if bound is not caller:
            bound.get_hookimpls = caller.get_hookimpls  # as pluggy's own callers have it
        setattr(self, name, bound)
        return cast(Callable[..., Any], bound)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *vars(self._manager.hook)]


def _compiled(
    name: str,
    caller: pluggy.HookCaller,
    position: MutableSequence[int],
    number: int | None,
    swallowed: Swallowed | None,
    held: HeldEffects | None,
) -> Callable[..., Any]:
    """A function with the hook's own parameters that calls each implementation with those it names.

    Written out as source, since a call through ``**given`` costs three times as much, and the loop makes dozens a step.
    """
    assert caller.spec is not None, "only a declared hook is compiled"
    found = list(reversed(caller.get_hookimpls()))
    wrappers = [one for one in found if one.wrapper]
    parameters = ", ".join(caller.spec.argnames)
    scope: dict[str, Any] = {
        "unanswered": lambda: _unanswered(name, caller),
        "DONE": _DONE,
        "position": position,
        "held": held,
    }
    asking = list(_asking(name, caller, [one for one in found if not one.wrapper], scope, wrapped=bool(wrappers)))
    head = f"def {name}({'*, ' if parameters else ''}{parameters}):"
    lines = []
    if wrappers:
        lines = [f"def inside({parameters}):", *asking]
        asking = list(_wrapping(name, wrappers, scope, parameters, _batches(caller), swallowed))
    body = list(_noting(number, asking))
    if held is not None and held.is_excused(name, found):
        lines += [f"def requested({parameters}):", *body]
        given = f"({parameters}{',' if parameters else ''})"
        lines += [head, f"    if held.depth: return held.requested(requested, {given}, {_batches(caller)})", *body]
    else:
        lines += [head, *body]
    exec(_code("\n".join(lines), f"<hook {name}>"), scope)
    compiled: Callable[..., Any] = scope[name]
    return compiled


@lru_cache(maxsize=256)  # a process with several runs compiles the same source again and again
def _code(source: str, name: str) -> CodeType:
    return compile(source, name, "exec")


def _noting(number: int | None, lines: Iterable[str]) -> Iterator[str]:
    """The lines of a hook, which notes its number while it runs, and that of the hook around it when it returns.

    An error leaves the number of the hook that raised it.
    """
    if number is None:
        yield from lines
        return
    yield f"    outer, position[0] = position[0], {number}"
    for line in lines:
        before, returns, result = line.partition("return ")
        yield f"{before}position[0] = outer; return {result}" if returns else line


def _asking(
    name: str, caller: pluggy.HookCaller, implementations: Sequence[HookImpl], scope: dict[str, Any], wrapped: bool
) -> Iterator[str]:
    """The lines that call the implementations one by one, down to the first answer where only one is wanted."""
    assert caller.spec is not None
    first_result = caller.spec.opts.get("firstresult")
    collects = not first_result and (wrapped or name not in EVENTS)  # wrappers get a list as pluggy gives it
    if collects:
        yield "    results = []"
    if scope["held"] is not None and not first_result:
        yield from _held_calls(name, caller, implementations, scope, collects=collects)
    else:
        for number, found in enumerate(implementations):
            yield from _call(number, found, scope, collects=collects, first_result=bool(first_result))
    if name in LOOP_HOOKS and not wrapped:
        yield "    raise unanswered()"
    else:
        yield f"    return {'results' if collects else 'None'}"


def _call(
    number: int, found: HookImpl, scope: dict[str, Any], *, collects: bool, first_result: bool = False
) -> Iterator[str]:
    """The lines that call one implementation and do with its result what the hook's kind says."""
    scope[f"f{number}"] = found.function
    call = f"f{number}({', '.join(found.argnames)})"
    if first_result:
        yield f"    result = {call}"
        yield "    if result is not None: return result"
    elif collects:
        yield f"    result = {call}"
        yield "    if result is not None: results.append(result)"
    else:
        yield f"    {call}"


def _held_calls(
    name: str, caller: pluggy.HookCaller, implementations: Sequence[HookImpl], scope: dict[str, Any], *, collects: bool
) -> Iterator[str]:
    """The lines that call all implementations, with a comparison before and after those that are held."""
    held, batches = scope["held"], _batches(caller)
    scope |= {"excused": held.excused, "NOTHING": ([], [])}
    scope |= {"batch_snapshot": held.batch_snapshot, "same_batch": held.same_batch}

    def calls(first: int, last: int, indent: str = "    ") -> Iterator[str]:
        for number in range(first, last):
            yield from (indent + line for line in _call(number, implementations[number], scope, collects=collects))

    at = 0
    for row in held.rows(name, implementations):
        if row is None:
            yield from _call(at, implementations[at], scope, collects=collects)
            at += 1
            continue
        yield "    if held.each:"
        yield f"        seen = held.before({batches})"
        for number, group in enumerate(row.alone, at):
            scope[f"g{number}"] = group
            yield from _compared(f"g{number}", batches, calls(number, number + 1, "        "))
            yield f"        seen = held.after(seen, g{number}, {batches})"
        if row.all is not None:
            scope[f"all{at}"] = row.all
            yield f"        held.after(seen, all{at}, {batches})"
        yield "    else:"
        yield from calls(at, at + row.first)
        if row.together is not None:
            scope[f"together{at}"] = row.together
            batch, also = "NOTHING", ""
            if batches != "()":
                batch, also = f"batch_snapshot({batches})", f" and same_batch(seen[1], {batches})"
            yield f"        seen = held.take(), {batch}, None, len(excused)"
            yield from _compared(f"together{at}", batches, calls(at + row.first, at + row.last, "        "))
            yield f"        if not (held.same(seen[0]){also}): held.after(seen, together{at}, {batches})"
        yield from calls(at + row.last, at + len(row.alone))
        if not row.last and not row.first:
            yield "        pass"
        at += len(row.alone)


def _compared(group: str, batches: str, calls: Iterator[str]) -> Iterator[str]:
    """The lines that call held implementations as an event in progress."""
    yield "        held.depth += 1"
    yield "        try:"
    yield from calls
    yield "        except BaseException:"
    yield "            held.depth -= 1"
    yield f"            held.failed(seen, {group}, {batches})"
    yield "            raise"
    yield "        held.depth -= 1"


def _batches(caller: pluggy.HookCaller) -> str:
    assert caller.spec is not None
    return next((text for key, text in _BATCHES.items() if key in caller.spec.argnames), "()")


_BATCHES = {"batches": "batches", "batch": "(batch,)"}
"""Parameters of hooks with micro-batches, and how their batches are written as a sequence."""


def _wrapping(
    name: str,
    wrappers: Sequence[HookImpl],
    scope: dict[str, Any],
    parameters: str,
    batches: str,
    swallowed: Swallowed | None,
) -> Iterator[str]:
    """The lines that bring each wrapper to its yield, ask the others, and give each what came of it, inside out."""
    scope["ended"] = _ending(name, wrappers, swallowed)
    scope["never"] = lambda number: _misused(name, wrappers[number], "no yield")
    yield "    opened, result, problem = [], None, None"
    yield "    try:"
    for number, found in enumerate(wrappers):
        scope[f"w{number}"] = found.function
        yield f"        wrapper = w{number}({', '.join(found.argnames)})"
        watched = None if scope["held"] is None else scope["held"].watched(name, found)
        if watched is not None:
            scope[f"gw{number}"] = watched
            yield f"        if held.each: wrapper = held.watch(wrapper, gw{number}, {batches})"
        yield f"        if next(wrapper, DONE) is DONE: raise never({number})"
        yield "        opened.append(wrapper)"
    yield f"        result = inside({parameters})"
    yield "    except BaseException as raised:"
    yield "        problem = raised"
    yield "    try:"
    yield "        result = ended(opened, result, problem)"
    yield "    finally:"
    yield "        problem = None"  # or its traceback would hold this frame, and with it all of the hook's arguments
    if name in LOOP_HOOKS:
        yield "    if result is None: raise unanswered()"
    yield "    return result"


def _ending(name: str, wrappers: Sequence[HookImpl], swallowed: Swallowed | None) -> Callable[..., Any]:
    def ended(opened: list[Generator[None, Any, Any]], result: Any, problem: BaseException | None) -> Any:
        while opened:
            wrapper = opened.pop()
            try:
                if problem is None:
                    wrapper.send(result)
                else:
                    wrapper.throw(problem)
                wrapper.close()
                problem = _misused(name, wrappers[len(opened)], "a second yield")
            except StopIteration as end:
                if problem is not None and swallowed is not None:
                    swallowed(name, wrappers[len(opened)].plugin_name, problem)
                result, problem = end.value, None
            except RuntimeError as raised:
                if isinstance(problem, StopIteration) and raised.__cause__ is problem:
                    wrapper.close()  # so Python says that a generator let a StopIteration through
                else:
                    problem = raised
            except BaseException as raised:
                problem = raised
        if problem is None:
            return result
        try:
            raise problem
        finally:
            problem = None

    return ended


def _misused(name: str, found: HookImpl, what: str) -> PluginError:
    problem = PluginError(
        f"plugin '{found.plugin_name}', hook {name}: a wrapper came to {what}, expected exactly one in every call:"
        " write `result = yield` where the others are to be called, and return the result"
    )
    failure_of(problem).raised_in = found.plugin_name, name  # no frame of it is on the traceback
    return problem


def _unanswered(name: str, caller: pluggy.HookCaller) -> LoopHookError:
    plugins = ", ".join(f"'{found.plugin_name}'" for found in reversed(caller.get_hookimpls())) or "none"
    return LoopHookError(
        f"hook {name}: no plugin answered; every implementation declined, or a wrapper returned None instead of"
        f" the result of its yield (asked: {plugins})"
    )


def guard_loop_hook(name: str, implementation: HookImpl) -> None:
    """Make a loop hook's implementation fail when it returns None, and decline when it returns NotImplemented.

    To pluggy None means *ask the next one*, which would do the work a second time after an implementation that merely
    forgot its ``return``.
    """
    function, plugin = implementation.function, implementation.plugin_name

    def guarded(*arguments: Any) -> Any:
        result = function(*arguments)
        if result is None:
            raise LoopHookError(
                f"plugin '{plugin}', hook {name}: returned None, expected what the hook's documentation says; return"
                " the result, or NotImplemented to leave the work to the next plugin"
            )
        return None if result is NotImplemented else result

    guarded.__wrapped__ = function  # type: ignore[attr-defined]
    setattr(implementation, "function", guarded)  # noqa: B010 - final for type checkers, and pluggy has no other way
