"""The suite ``dispatch``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.dispatch import calls
from benchmarks.dispatch.ours import HOOKS
from benchmarks.dispatch.targets import STEP, Added, same_training, with_own_plugins
from benchmarks.peers import IGNITE, LIGHTNING, TRL, ignite, lightning, transformers
from hooktrain.bench import Case, Context, Peer, Suite, Target, TargetLike, Variant

__all__ = ["SUITE"]

_MOST = 1.10
"""Highest ratio to the bare loop, with the first-party plugins installed."""
_NOTHING = 1.01
"""Highest ratio that counts as no cost of silent plugins, because an interval is never a point."""
_OBSERVING = 1.0
"""Highest cost of an observing plugin, in µs per hook."""
_HELD = 6.0
"""Highest cost of comparing what plugins change around an event, in µs."""
_COUNTS = (0, 10, 100)
_HELD_COUNTS = (1, 10, 100)
_PEERS: dict[str, tuple[str, Peer, int]] = {
    "Lightning": ("benchmarks.peers.lightning", LIGHTNING, lightning.HOOKS),
    "transformers": ("benchmarks.peers.transformers", TRL, transformers.HOOKS),
    "Ignite": ("benchmarks.peers.ignite", IGNITE, ignite.HOOKS),
}
"""The driver of each peer, its environment, and how many methods of a step an observing plugin has."""


def cases(context: Context) -> Iterator[Case]:
    """Yield calls of a hook, then steps with different log intervals, then steps with more and more plugins."""
    yield from calls.cases(context.quick)
    chunks = context.whole_number("chunks", 3 if context.quick else 100)
    variants = _Variants(chunks)
    own = frozenset() if context.quick else _first_party()
    yield _defaults(variants, own, context.quick)
    for every in (1,) if context.quick else (1, 10, 100):
        yield _logging(variants, own, every)
    for kind in ("silent", "observing"):
        yield _plugins(variants, kind, _COUNTS[::2] if context.quick else _COUNTS)
    for count in _HELD_COUNTS[:1] if context.quick else _HELD_COUNTS:
        yield _held(variants, count)


class _Variants:
    """Makes the variants."""

    def __init__(self, chunks: int) -> None:
        self.common = {"chunks": chunks, "threads": 1}
        self.warmup = max(1, chunks // 10)

    def ours(self, name: str, log_every: int | None, kind: str = "silent", count: int = 0) -> Variant:
        return self._variant(name, "benchmarks.dispatch.ours", log_every, plugins={"kind": kind, "count": count})

    def bare(self, name: str, log_every: int | None, loader: str = "DataLoader", groups: int = 2) -> Variant:
        return self._variant(name, "benchmarks.dispatch.bare", log_every, loader=loader, groups=groups)

    def peer(self, peer: str, name: str, log_every: int | None, kind: str = "silent", count: int = 0) -> Variant:
        driver, environment, _ = _PEERS[peer]
        variant = self._variant(name, driver, log_every, plugins={"kind": kind, "count": count})
        return Variant(name, driver=driver, specification=variant.specification, peer=environment)

    def _variant(self, name: str, driver: str, log_every: int | None, **more: Any) -> Variant:
        return Variant(name, driver=driver, specification={**self.common, "log_every": log_every, **more})


def _first_party() -> frozenset[str]:
    """Return the distributions of the folder ``plugins``."""
    return frozenset(folder.name for folder in (Path(__file__).parents[2] / "plugins").iterdir() if folder.is_dir())


def _defaults(variants: _Variants, own: frozenset[str], quick: bool) -> Case:
    return Case(
        name="defaults",
        about="one layer, eight rows a step; the default log intervals: hooktrain 1, Lightning 50, transformers 500,"
        " Ignite and the loop never",
        variants=(
            variants.ours("hooktrain", None),
            variants.bare("bare", None),
            *(() if quick else (variants.bare("bare, one group", None, groups=1),)),
            variants.bare("bare, no DataLoader", None, loader="slices"),
            *(variants.peer(peer, peer, None) for peer in _PEERS),
        ),
        **_compared_with_the_loop(variants, own),
    )


def _logging(variants: _Variants, own: frozenset[str], every: int) -> Case:
    return Case(
        name=f"log-{every}",
        about=f"one layer, eight rows a step; a log line every {'step' if every == 1 else f'{every} steps'} in all"
        " variants",
        variants=(
            variants.ours("hooktrain", every),
            variants.bare("bare", every),
            *(variants.peer(peer, peer, every) for peer in _PEERS),
        ),
        **_compared_with_the_loop(variants, own),
    )


def _compared_with_the_loop(variants: _Variants, own: frozenset[str]) -> dict[str, Any]:
    """Return what cases with and without log lines have in common."""
    checks = [("hooktrain", "bare", same_training), ("hooktrain", "bare", with_own_plugins(own))]
    targets = [Target(variant="hooktrain", to="bare", at_most=_MOST, checks=tuple(checks))]
    targets += [
        Target(variant="hooktrain", to=peer, at_most=1.0, checks=(("hooktrain", peer, same_training),))
        for peer in _PEERS
    ]
    return {
        "baseline": "bare",
        "metrics": (STEP,),
        "targets": tuple(targets),
        "warmup_steps": variants.warmup,
        "recipe": {"type": "one-layer", "micro_batch_size": 8, "optimizer": {"type": "adamw"}},
    }


def _plugins(variants: _Variants, kind: str, counts: tuple[int, ...]) -> Case:
    """Return a case that compares each program with itself without plugins; a log line every 100 steps."""
    made = [variants.ours(_named("hooktrain", count), 100, kind, count) for count in counts]
    for peer in _PEERS:
        made += [variants.peer(peer, _named(peer, count), 100, kind, count) for count in counts]
    targets: list[TargetLike] = []
    for count in counts[1:]:
        targets.append(_silent(count) if kind == "silent" else _observing(count))
        for peer, (_, _, methods) in _PEERS.items():
            of, per = ("", count) if kind == "silent" else (", a method", count * methods)
            name = f"{peer}: each of {count} {kind} ones{of}"
            targets.append(Added(name=name, variant=_named(peer, count), to=peer, per=per))
    return Case(
        name=kind,
        about=f"one layer, with {', '.join(map(str, counts))} additional {kind} plugins (callbacks, sets of handlers)",
        variants=tuple(made),
        baseline="hooktrain",
        metrics=(STEP,),
        targets=tuple(targets),
        warmup_steps=variants.warmup,
        compare=False,
        recipe={"type": "one-layer", "micro_batch_size": 8, "optimizer": {"type": "adamw"}, "log_interval": 100},
    )


def _held(variants: _Variants, count: int) -> Case:
    """Return a case that compares observing plugins, around whose events a run looks for changes, with unheld ones."""
    held, unheld = variants.ours("held", 100, "observing", count), variants.ours("unheld", 100, "unheld", count)
    target = Target(
        name="held, an event",
        variant="held",
        to="unheld",
        kind="difference",
        per=HOOKS,
        at_most=_HELD,
        unit="µs",
        checks=(("held", "unheld", same_training),),
    )
    return Case(
        name=f"held-{count}",
        about=f"one layer, with {count} additional observing plugins, whose {HOOKS} events are compared or are not",
        parameters={"plugins": count},
        variants=(held, unheld),
        baseline="unheld",
        metrics=(STEP,),
        targets=(target,),
        warmup_steps=variants.warmup,
        compare=False,
        recipe={"type": "one-layer", "micro_batch_size": 8, "optimizer": {"type": "adamw"}, "log_interval": 100},
    )


def _silent(count: int) -> Target:
    variant = _named("hooktrain", count)
    return Target(variant=variant, at_most=_NOTHING, checks=((variant, "hooktrain", same_training),))


def _observing(count: int) -> Target:
    variant = _named("hooktrain", count)
    return Target(
        name=f"hooktrain: each of {count} observing ones, a hook",
        variant=variant,
        kind="difference",
        per=count * HOOKS,
        at_most=_OBSERVING,
        unit="µs",
        checks=((variant, "hooktrain", same_training),),
    )


def _named(who: str, count: int) -> str:
    return f"{who}, {count} more" if count else who


SUITE = Suite(
    name="dispatch",
    summary="cost of a hook call, and a step compared with a loop, Lightning, transformers, Ignite (2 hours)",
    cases=cases,
    over="implementations",
    options={"chunks": "hundreds of steps in a run"},
)
