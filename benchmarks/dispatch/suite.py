"""The suite ``dispatch``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.dispatch import calls
from benchmarks.dispatch.judges import STEP, Added, same_training, with_own_plugins
from benchmarks.dispatch.ours import HOOKS
from benchmarks.peers import IGNITE, LIGHTNING, TRL, ignite, lightning, transformers
from hooktrain.bench import Case, Context, Peer, Suite, Target, TargetLike, Variant

__all__ = ["SUITE"]

_MOST = 1.10
"""Times the bare loop, with the first-party plugins installed."""
_NOTHING = 1.01
"""Times the same with no further plugin, at most, for silent plugins to cost nothing: an interval is never a point."""
_OBSERVING = 1.0
"""µs a hook and plugin."""
_COUNTS = (0, 10, 100)
_PEERS: dict[str, tuple[str, Peer, int]] = {
    "Lightning": ("benchmarks.peers.lightning", LIGHTNING, lightning.HOOKS),
    "transformers": ("benchmarks.peers.transformers", TRL, transformers.HOOKS),
    "Ignite": ("benchmarks.peers.ignite", IGNITE, ignite.HOOKS),
}
"""By the name of the side: its driver, its environment, and how many methods of a step an observing plugin has."""


def cases(context: Context) -> Iterator[Case]:
    """Calls of a hook; steps with log lines in one interval after the other; steps with more and more plugins."""
    yield from calls.cases(context.quick)
    chunks = context.whole_number("chunks", 3 if context.quick else 100)
    sides = _Sides(chunks)
    own = frozenset() if context.quick else _first_party()
    yield _defaults(sides, own, context.quick)
    for every in (1,) if context.quick else (1, 10, 100):
        yield _logging(sides, own, every)
    for kind in ("silent", "observing"):
        yield _plugins(sides, kind, _COUNTS[::2] if context.quick else _COUNTS)


class _Sides:
    """What each side is told."""

    def __init__(self, chunks: int) -> None:
        self.common = {"chunks": chunks, "threads": 1}
        self.warmup = max(1, chunks // 10)

    def ours(self, name: str, log_every: int | None, kind: str = "silent", count: int = 0) -> Variant:
        return self._side(name, "benchmarks.dispatch.ours", log_every, plugins={"kind": kind, "count": count})

    def bare(self, name: str, log_every: int | None, loader: str = "DataLoader", groups: int = 2) -> Variant:
        return self._side(name, "benchmarks.dispatch.bare", log_every, loader=loader, groups=groups)

    def peer(self, peer: str, name: str, log_every: int | None, kind: str = "silent", count: int = 0) -> Variant:
        driver, environment, _ = _PEERS[peer]
        side = self._side(name, driver, log_every, plugins={"kind": kind, "count": count})
        return Variant(name, driver=driver, specification=side.specification, peer=environment)

    def _side(self, name: str, driver: str, log_every: int | None, **more: Any) -> Variant:
        return Variant(name, driver=driver, specification={**self.common, "log_every": log_every, **more})


def _first_party() -> frozenset[str]:
    """The distributions of the folder ``plugins``."""
    return frozenset(folder.name for folder in (Path(__file__).parents[2] / "plugins").iterdir() if folder.is_dir())


def _defaults(sides: _Sides, own: frozenset[str], quick: bool) -> Case:
    return Case(
        name="defaults",
        about="one layer, eight rows a step; log lines as each comes: hooktrain every step, Lightning 50, transformers"
        " 500, Ignite and the loop never",
        sides=(
            sides.ours("hooktrain", None),
            sides.bare("bare", None),
            *(() if quick else (sides.bare("bare, one group", None, groups=1),)),
            sides.bare("bare, no DataLoader", None, loader="slices"),
            *(sides.peer(peer, peer, None) for peer in _PEERS),
        ),
        **_beside_the_loop(sides, own),
    )


def _logging(sides: _Sides, own: frozenset[str], every: int) -> Case:
    return Case(
        name=f"log-{every}",
        about=f"one layer, eight rows a step; a log line every {'step' if every == 1 else f'{every} steps'} on all"
        " sides",
        sides=(
            sides.ours("hooktrain", every),
            sides.bare("bare", every),
            *(sides.peer(peer, peer, every) for peer in _PEERS),
        ),
        **_beside_the_loop(sides, own),
    )


def _beside_the_loop(sides: _Sides, own: frozenset[str]) -> dict[str, Any]:
    """What cases with and without log lines have in common."""
    checks = [("hooktrain", "bare", same_training), ("hooktrain", "bare", with_own_plugins(own))]
    targets = [Target(side="hooktrain", to="bare", at_most=_MOST, checks=tuple(checks))]
    targets += [
        Target(side="hooktrain", to=peer, at_most=1.0, checks=(("hooktrain", peer, same_training),)) for peer in _PEERS
    ]
    return {
        "baseline": "bare",
        "metrics": (STEP,),
        "targets": tuple(targets),
        "warmup_steps": sides.warmup,
        "recipe": {"type": "one-layer", "micro_batch_size": 8, "optimizer": {"type": "adamw"}},
    }


def _plugins(sides: _Sides, kind: str, counts: tuple[int, ...]) -> Case:
    """No bare loop: each is compared with itself without plugins; a log line every 100 steps."""
    made = [sides.ours(_named("hooktrain", count), 100, kind, count) for count in counts]
    for peer in _PEERS:
        made += [sides.peer(peer, _named(peer, count), 100, kind, count) for count in counts]
    targets: list[TargetLike] = []
    for count in counts[1:]:
        targets.append(_silent(count) if kind == "silent" else _observing(count))
        for peer, (_, _, methods) in _PEERS.items():
            of, per = ("", count) if kind == "silent" else (", a method", count * methods)
            name = f"{peer}: each of {count} {kind} ones{of}"
            targets.append(Added(name=name, side=_named(peer, count), to=peer, per=per))
    return Case(
        name=kind,
        about=f"one layer, with {', '.join(map(str, counts))} {kind} plugins more (callbacks, sets of handlers)",
        sides=tuple(made),
        baseline="hooktrain",
        metrics=(STEP,),
        targets=tuple(targets),
        warmup_steps=sides.warmup,
        compare=False,
        recipe={"type": "one-layer", "micro_batch_size": 8, "optimizer": {"type": "adamw"}, "log_interval": 100},
    )


def _silent(count: int) -> Target:
    side = _named("hooktrain", count)
    return Target(side=side, at_most=_NOTHING, checks=((side, "hooktrain", same_training),))


def _observing(count: int) -> Target:
    side = _named("hooktrain", count)
    return Target(
        name=f"hooktrain: each of {count} observing ones, a hook",
        side=side,
        kind="difference",
        per=count * HOOKS,
        at_most=_OBSERVING,
        unit="µs",
        checks=((side, "hooktrain", same_training),),
    )


def _named(who: str, count: int) -> str:
    return f"{who}, {count} more" if count else who


SUITE = Suite(
    name="dispatch",
    summary="what a hook call costs, and a step beside a bare loop, Lightning, transformers and Ignite (2 hours)",
    cases=cases,
    over="implementations",
    options={"chunks": "hundreds of steps in a run"},
)
