"""Measurement of what a plugin costs and changes: a recipe with it and without it, each run in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from hooktrain.bench.bootstrap import difference_of_medians
from hooktrain.bench.errors import BenchError
from hooktrain.bench.model import Case, Context, Findings, Metric, Suite, Variant
from hooktrain.bench.results import FILE, Line, require_folder, values, write
from hooktrain.bench.runner import Settings, run_suites
from hooktrain.bench.tables import coloured, figure_text, make_table, median_text
from hooktrain.errors import did_you_mean
from hooktrain.plugin.config import PluginsConfig, Switches, plugins_config
from hooktrain.plugin.records import PluginRecord
from hooktrain.recipe.yaml_reader import apply_overrides, read_recipe
from hooktrain.training.load import make_host

__all__ = ["measure_plugin", "print_report"]

_STEPS, _TINY_STEPS = 20, 200
_TINY = {
    "type": "tiny",
    "micro_batch_size": 2,
    "model": {"vocab": 17, "width": 8},
    "optimizer": {"lr": 1e-2},
    "strategy": {"dtype": "fp32", "device": "cpu"},
    "console": {"enabled": False},
}
METRICS = (
    Metric("seconds", "s", undisturbed=Metric("cpu_seconds", "s")),
    Metric("cpu_seconds", "s"),
    Metric("start_seconds", "s"),
    Metric("peak_mib", "MiB"),
    Metric("device_seconds", "s"),
    Metric("device_peak_mib", "MiB"),
    Metric("device_syncs", "", exact=True),
    Metric("last_loss", "", None, exact=True, read=lambda found, _: found["loss"][-1]),
)
_NAMES = {
    "seconds": "a step",
    "cpu_seconds": "a step, processor time",
    "start_seconds": "start to the first step",
    "peak_mib": "peak memory",
    "device_seconds": "a step, on the device",
    "device_peak_mib": "peak device memory",
    "device_syncs": "device syncs, a step",
    "last_loss": "loss of the last step",
}


def measure_plugin(
    name: str,
    recipe: Path | None,
    settings: Settings,
    *,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    own: Sequence[str] = (),
    switches: Sequence[str] = (),
    out: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Line:
    """Measure what a plugin costs.

    Args:
        name: name of an installed plugin, or a module as for ``-p``.
        recipe: recipe file; by default a tiny recipe.
        settings: rounds and cores.
        steps: optimizer steps of each run.
        overrides, switches: ``-o`` and ``-p`` of the command line, for both variants.
        own: overrides for the variant with the plugin alone.
        out: folder for the results.
        say: called with messages about progress.

    Returns:
        A line of results, with the plugin's hooks and parts in ``plugin``, a sentence on the losses in ``losses``, and
        in ``unused`` why the recipe does not use the plugin, where it does not.

    Raises:
        BenchError: when there is no such plugin, or it is the loop itself.
    """
    record = _record(name, switches)
    if out is not None:
        require_folder(out)
    steps = steps or (8 if settings.quick else _STEPS if recipe else _TINY_STEPS)
    rows = {"rows": 2 * steps, "eval_rows": 0}
    plain = read_recipe(recipe) if recipe else {**_TINY, "data": rows}
    plain = {**plain, "exit_iteration": steps}
    apply_overrides(plain, [*overrides, *own])  # refuses what is none before anything is measured
    specification = {
        "recipe": plain,
        "folder": os.getcwd(),
        "overrides": list(overrides),
        "tiny": recipe is None,
        "count": False,
    }

    def variant(which: str, *more: str, count: bool = False) -> Variant:
        given = {**specification, "switches": [*switches, *more], "count": count}
        if which == "with":
            given |= {"overrides": [*overrides, *own], "plugin": record.name}
        return Variant(which, driver="hooktrain.bench.plugin_driver", specification=given, environment=_caches())

    loaded = {*switches, *Switches.given(()).environment, *plugins_config(plain, []).load}
    removable = bool(record.distribution and record.version) or name in loaded
    variants = {"without": (f"no:{name}",) if removable else (), "with": (name,)}
    syncs: dict[str, Findings] = {}

    def cases(context: Context) -> list[Case]:
        for which, words in variants.items():  # before anything is timed, so that caches are warm
            say(f"  counting device syncs of {steps} steps {which} {name}")
            syncs[which] = context.runner.run(variant(which, *words, count=True))
        return [
            Case(
                name=name,
                about=f"{steps} steps of {recipe or 'a tiny recipe'}, with and without the plugin",
                variants=[variant(which, *words) for which, words in variants.items()],
                baseline="without",
                metrics=METRICS,
                warmup_steps=max(1, steps // 10),
                recipe=plain,
                compare=True,
            )
        ]

    (line,) = run_suites([Suite(name="plugin", summary="", cases=cases)], settings, say=say)
    for which, found in syncs.items():
        if "device_syncs" in found:
            line["variants"][which]["values"]["device_syncs"] = [found["device_syncs"]] * len(line["runs"][which])
    line["plugin"] = {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "hooks": list(record.hooks),
        "registers": list(record.registers),
    }
    line["losses"] = _losses(line)
    line["unused"] = syncs.get("with", {}).get("unused", "")
    if out is not None:
        write(out / FILE, line)
    return line


def _record(name: str, switches: Sequence[str]) -> PluginRecord:
    host = make_host(PluginsConfig().switched([*switches, name]))
    record = host.records.get(name)
    if record is None or name == "loop":
        known = [other for other in host.records if other != "loop"]
        raise BenchError(
            f"bench plugin: '{name}' cannot be disabled{did_you_mean(name, known)}; expected one of {', '.join(known)}"
        )
    return record


def _caches() -> dict[str, str]:
    """Return variables for the user's own caches, because a recipe may name a downloaded model."""
    made = {
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path("~/.cache").expanduser())),
        "HF_HOME": os.environ.get("HF_HOME", str(Path("~/.cache/huggingface").expanduser())),
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"),
    }
    return made | {name: value for name, value in os.environ.items() if name.startswith("HOOKTRAIN_")}


def _losses(line: Line) -> str:
    """Return a sentence on how the losses of both variants differ."""
    found = [
        next((run["loss"] for run in line["runs"][variant] if run.get("loss")), None) for variant in ("without", "with")
    ]
    if found[0] is None or found[1] is None:
        return "there are no losses to compare"
    if len(found[0]) != len(found[1]):
        return f"{len(found[0])} losses without it and {len(found[1])} with it: it changes the number of logged steps"
    apart = [(at, b - a) for at, (a, b) in enumerate(zip(*found, strict=True)) if a != b]
    if not apart:
        return f"the losses of all {len(found[0])} steps are bitwise equal: it does not change the training"
    first, most = apart[0], max(apart, key=lambda each: abs(each[1]))
    return (
        f"the losses differ from step {first[0] + 1} on (by {first[1]:+.2g}), at most at step {most[0] + 1}"
        f" ({most[1]:+.2g}); the last is {found[0][-1]:.4g} without it and {found[1][-1]:.4g} with it"
    )


def print_report(line: Line, console: Console) -> None:
    """Print the plugin, a table of what it costs, and what it changes."""
    plugin: Mapping[str, Any] = line["plugin"]
    console.print()
    console.print(Text(f"{plugin['name']}", style="bold") + Text(f"  {plugin['distribution']} {plugin['version']}"))
    console.print(Text(f"hooks: {', '.join(plugin['hooks']) or 'none'}", style="dim"))
    if plugin["registers"]:
        console.print(Text(f"registers: {', '.join(plugin['registers'])}", style="dim"))
    console.print(Text(line["about"], style="dim"))
    if line["unused"]:
        why = f"the variant with it did not use it, so that this is what its installation costs: {line['unused']}"
        console.print(Text(f"{why}; pass what uses it as --settings KEY=VALUE", style="yellow"))
    for variant in ("without", "with"):
        if "error" in line["variants"][variant]:
            console.print(Text(f"{variant} it, the recipe fails: {line['variants'][variant]['error']}", style="red"))
    table = make_table([""], ["without", "with", "difference (95%)"], ["verdict"])
    verdicts = {each["metric"]: each for each in line["comparisons"]}
    for metric in line["metrics"]:
        pair = [values(line, variant, metric["name"]) for variant in ("without", "with")]
        if not any(pair):
            continue
        shown = [median_text(line, variant, metric) for variant in ("without", "with")]
        difference, verdict = "-", Text("")
        if all(pair):
            figure = difference_of_medians(pair[1], pair[0])
            difference = figure_text({"figure": figure, "kind": "difference", "unit": metric["unit"]})
            verdict = _verdict(metric, figure.value, verdicts.get(metric["name"]))
        table.add_row(_NAMES[metric["name"]], *shown, difference, verdict)
    console.print(table)
    console.print(Text(line["losses"]))
    reasons: dict[str, list[str]] = {}
    for each in line["comparisons"]:
        if each["verdict"] == "undecided":
            reasons.setdefault(each["why"], []).append(_NAMES[each["metric"]])
    for why, metrics in reasons.items():
        console.print(Text(f"{'undecided' if len(metrics) > 2 else ', '.join(metrics)}: {why}", style="dim"))


def _verdict(metric: Mapping[str, Any], difference: float, compared: Mapping[str, Any] | None) -> Text:
    if metric["exact"] and (compared is None or metric["better"] is None):
        changed = "differs" if metric["better"] is None else "more" if difference > 0 else "less"
        return Text(changed if difference else "same")
    if compared is None:
        return Text("")
    return coloured(compared)
