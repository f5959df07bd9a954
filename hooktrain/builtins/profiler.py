"""``profile_hooks``: what each plugin cost in each hook, in the metrics, in the run directory and at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain.builtins.hook_timer import Cost, HookTimer, hide_frames
from hooktrain.markers import hookimpl
from hooktrain.plugin.info import PluginInfo
from hooktrain.plugin.manager import PluginHost

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["Profiler", "profile", "table"]

_ROWS = 24
"""Rows of the table at most; those that follow are told as a sum."""
_SMALLEST = 0.0005
"""Share of the run from which on a row is shown."""


def profile(host: PluginHost) -> None:
    """From now on measure what the plugins of a host do; all of them must have been registered."""
    profiler = Profiler()
    host.register(profiler, "profile")
    host.measure(profiler.timer)


class Profiler:
    """Shows what each plugin costs in each hook.

    Each rank measures itself and keeps its numbers in the run directory, rank 0 in ``profile.json`` and the others in
    ``profile.rank1.json`` and so on. What rank 0 has measured is logged, and printed at the end.
    """

    hooktrain_plugin = PluginInfo(only_observes=True, in_manifest=False)

    def __init__(self) -> None:
        self.timer = HookTimer()
        self._logged: Mapping[str, tuple[int, int]] = {}

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: Trainer) -> None:
        self.timer.begin(trainer.device)
        self._logged = self._totals()

    @hookimpl
    def collect_metrics(self, trainer: Trainer) -> Mapping[str, float]:
        """Milliseconds of the host that each plugin took for a step, on average since the last log line."""
        before, now = self._logged, self._totals()
        self._logged, steps = now, trainer.meter.steps
        if not steps:
            return {}
        made = {}
        for plugin, (calls, spent) in now.items():
            calls_before, spent_before = before.get(plugin, (0, 0))
            if calls > calls_before or spent > spent_before:
                made[f"hooks/{plugin}/ms"] = (spent - spent_before) / steps / 1e6
        return made

    @hookimpl
    def on_exception(self, exception: BaseException) -> None:
        hide_frames(exception)

    @hookimpl(trylast=True)
    def on_teardown(self, trainer: Trainer) -> None:
        self.timer.end()
        found = facts(self.timer, trainer.world.rank, trainer.world.world_size)
        path = None
        if trainer.owns_run_dir:  # a run whose folder another one holds writes nothing there
            rank = "" if trainer.world.is_main else f".rank{trainer.world.rank}"
            path = trainer.run_dir / f"profile{rank}.json"
            path.parent.mkdir(parents=True, exist_ok=True)  # on another host than rank 0's
            path.write_text(json.dumps(found, indent=2), encoding="utf-8")
        trainer.say(table(found, path))

    def _totals(self) -> Mapping[str, tuple[int, int]]:
        """Calls and nanoseconds so far of each plugin."""
        calls, spent = Counter[str](), Counter[str]()
        for cost in self.timer.costs.values():
            calls[cost.plugin] += cost.calls
            spent[cost.plugin] += cost.nanoseconds
        return {plugin: (calls[plugin], spent[plugin]) for plugin in calls}


# ------------------------------------------------------------------------------------------------- what is shown


def facts(timer: HookTimer, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """Return a timer's measurements as plain values for JSON.

    Returns:
        ``rank``, ``world_size``, ``seconds`` of the run, ``profiling_seconds`` that measuring took of them, ``memory``
        (what the peak is of: ``device`` or ``process``), and ``hooks``, the costliest first: ``plugin``, ``hook``,
        ``calls``, ``ms``, ``share`` of the run, ``device_syncs`` (null without a GPU) and ``mib``.
        See :class:`hooktrain.builtins.hook_timer.Cost`.
    """
    seconds = timer.seconds
    called = [cost for cost in timer.costs.values() if cost.calls]
    return {
        "rank": rank,
        "world_size": world_size,
        "seconds": round(seconds, 6),
        "profiling_seconds": round(timer.overhead() * sum(cost.calls for cost in called), 6),
        "memory": "device" if timer.of_device else "process",
        "hooks": [
            _entry(cost, seconds, timer.counts_syncs) for cost in sorted(called, key=lambda cost: -cost.nanoseconds)
        ],
    }


def _entry(cost: Cost, seconds: float, counts_syncs: bool) -> dict[str, Any]:
    return {
        "plugin": cost.plugin,
        "hook": cost.hook,
        "calls": cost.calls,
        "ms": round(cost.nanoseconds / 1e6, 4),
        "share": round(cost.nanoseconds / 1e9 / seconds, 6) if seconds else 0.0,
        "device_syncs": cost.device_syncs if counts_syncs else None,
        "mib": round(cost.memory / 2**20, 3),
    }


def table(found: Mapping[str, Any], path: Path | None = None) -> str:
    """A table of 80 columns of what :func:`facts` returned, kept in ``path``."""
    rows, whole = found["hooks"], found["seconds"]
    shown = [row for row in rows if row["share"] >= _SMALLEST or row["device_syncs"] or row["mib"] >= 1][:_ROWS]
    ranks = f" on rank {found['rank']} of {found['world_size']}" if found["world_size"] > 1 else ""
    lines = [
        f"what hooks took of {_time(whole)}{ranks}, each without those that it called:",
        f"{'plugin':14} {'hook':23} {'calls':>6} {'ms/call':>7} {'total':>7} {'share':>5} {'syncs':>5} {'MiB':>6}",
    ]
    for row in shown:
        ms, calls = row["ms"], row["calls"]
        lines.append(
            f"{_tail(row['plugin'], 14):14} {_tail(row['hook'], 23):23} {_count(calls):>6} {_ms(ms / calls):>7}"
            f" {_time(ms / 1e3):>7} {_share(row['share']):>5} {_count(row['device_syncs']):>5} {row['mib']:>6.0f}"
        )
    if len(shown) < len(rows):
        more = sum(row["ms"] for row in rows if row not in shown) / 1e3
        lines.append(f"{len(rows) - len(shown)} more took {_time(more)} together")
    outside = max(0.0, whole - sum(row["ms"] for row in rows) / 1e3)
    measuring = found["profiling_seconds"]
    lines.append(
        f"{_time(outside)} passed outside of hooks; measuring took about {_time(measuring)}"
        f" ({_share(measuring / whole if whole else 0.0)})"
    )
    lines.append("syncs: waits for the device, counted on a GPU")
    lines.append(f"MiB: growth of the peak of the {found['memory']}'s memory meanwhile")
    if path is not None:
        lines.append(f"all of it: {path}")
    return "\n".join(lines)


def _tail(text: str, width: int) -> str:
    """The end of a name says more: ``…module:Class``."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


def _count(number: int | None) -> str:
    if number is None:
        return "-"
    return str(number) if number < 100_000 else f"{number / 1e6:.1f}M"


def _ms(ms: float) -> str:
    if ms < 1000:
        return f"{ms:.4f}" if ms < 1 else f"{ms:.2f}"
    return f"{ms:.0f}" if ms < 1e7 else f"{ms:.1e}"


def _share(share: float) -> str:
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
