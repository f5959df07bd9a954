"""Sections of the page; each returns an empty text where a run has nothing to show in it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hooktrain import RunFiles
from hooktrain_report.html import COLOURS, Html, bytes_text, details, duration, facts, number, table, text
from hooktrain_report.origins import DEFAULT, origins_of

__all__ = [
    "answers",
    "checkpoints",
    "curves",
    "data",
    "differences",
    "evaluation",
    "events",
    "plugins",
    "recipe",
    "summary",
    "warnings",
]

_NO_PLOTS = "Curves need matplotlib: pip install 'hooktrain-report[plots]'"
_COUNTERS = {"step", "epoch", "tokens", "supervised_tokens", "step_seconds", "loss", "lr", "tokens_per_second"}
_MOST_PLOTS = 24
"""Plots of metrics that plugins and losses add."""
_MOST_EVENTS = 200
_TOKENS = {
    "trained": ("tokens_trained", "#1a7f37"),
    "kept as context": ("", "#9bd5a8"),
    "truncated": ("tokens_truncated", "#d9480f"),
    "dropped": ("tokens_dropped", "#c62828"),
}


# ------------------------------------------------------------------------------------------------------- what ran


def summary(runs: Sequence[RunFiles], names: Sequence[str]) -> Html:
    """How each run stands, what it reached, and where it took place."""
    several = len(runs) > 1
    heads = [
        Html(f"<span class='swatch' style='background:{COLOURS[at % len(COLOURS)]}'></span>{text(name)}")
        if several
        else name
        for at, name in enumerate(names)
    ]
    columns = [_summary_of(run) for run in runs]
    rows = {name: [column.get(name, "") for column in columns] for name in dict.fromkeys(k for c in columns for k in c)}
    notes = [
        f"<p class='warning'>{text(f'{name}: {note}')}</p>"
        for run, name in zip(runs, names, strict=True)
        for note in run.problems
    ]
    return Html(facts(heads, rows) + "".join(notes))


def _summary_of(run: RunFiles) -> dict[str, object]:
    found, env = run.facts, run.environment
    state = found["state"]
    kind = state if state in ("ended", "running") else "failed"
    steps = "" if found["steps"] is None else f" of {found['steps']:,}"
    hook = f", in the hook {found['hook']}" if found["hook"] else ""
    last = {name: value for line in run.metrics for name, value in line.items()}
    lowest = [(line["loss"], line["step"]) for line in run.metrics if _is_finite(line.get("loss"))]
    speeds = [line["tokens_per_second"] for line in run.metrics if _is_finite(line.get("tokens_per_second"))]
    changes = Html(f"<span class='{kind}'>{text(state)}</span>")
    tokens = (
        f"{number(last['tokens'])}, {number(last['supervised_tokens'])} of them trained" if "tokens" in last else ""
    )
    machine = [env.get("processor"), f"{env['cores']} cores" if env.get("cores") else None]
    machine += [bytes_text(env["memory"]) if env.get("memory") else None, ", ".join(env.get("devices") or ()) or None]
    hooktrain = next((each for each in run.plugins if each.get("distribution") == "hooktrain"), {})
    versions = {"hooktrain": hooktrain.get("version"), "torch": env.get("torch"), "Python": env.get("python")}
    starts = f", started {found['starts']} times" if found["starts"] > 1 else ""
    return {
        "state": changes,
        "why": found["problem"] or found["why"],
        "exit status": found["status"] if found["status"] else "",
        "steps": f"{found['step']:,}{steps}{hook}",
        "loss": f"{number(last['loss'])}; lowest {number(min(lowest)[0])} at step {min(lowest)[1]:,}" if lowest else "",
        "tokens": tokens,
        "tokens per second": f"{number(statistics.median(speeds))}, the median of the log lines" if speeds else "",
        "started": _clock(found["started"]) + starts,
        "took": duration(found["written"] - found["started"]) if found["written"] > found["started"] else "",
        "resumed from": found["resumed_from"],
        "machine": ", ".join(str(each) for each in machine if each),
        "host": f"{found['host']}, {found['world_size']} rank{'s' if found['world_size'] != 1 else ''}",
        "system": env.get("platform", ""),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit": str(env.get("commit", ""))[:12],
        "command": " ".join(map(str, env.get("command", ()))),
        "recipe": run.source if run.source != "recipe" else "given in Python",
        "run": found["id"],
        "folder": str(run.folder.resolve()),
    }


def differences(found: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Html:
    """The values of the recipes that are not the same in all runs."""
    if not found:
        return Html("<p class='note'>The recipes are the same.</p>")
    return facts(names, {path: ["" if value is None else value for value in values] for path, values in found.items()})


def recipe(run: RunFiles) -> Html:
    """The values that somebody has written, and behind them the defaults."""
    if not run.recipe:
        return Html("")
    origins = origins_of(run)
    if not origins:
        note = "<p class='note'>This run has not noted who wrote which value.</p>"
        rows = [(path, value) for path, value in run.recipe.items()]
        return Html(note + details(f"{len(rows)} values", table(("key", "value"), rows)))
    chosen = [(path, value, origins[path]) for path, value in run.recipe.items() if origins[path] != DEFAULT]
    defaults = [(path, value) for path, value in run.recipe.items() if origins[path] == DEFAULT]
    return Html(
        table(("key", "value", "origin"), chosen)
        + details(f"{len(defaults)} defaults", table(("key", "default"), defaults))
    )


def plugins(run: RunFiles) -> Html:
    """The active plugins with their versions."""
    rows = [
        (each.get("name", ""), each.get("distribution", ""), each.get("version", ""), str(each.get("digest", ""))[:12])
        for each in run.plugins
    ]
    return (
        details(f"{len(rows)} active plugins", table(("plugin", "distribution", "version", "digest"), rows))
        if (rows)
        else Html("")
    )


# --------------------------------------------------------------------------------------------------------- curves


def curves(runs: Sequence[RunFiles], names: Sequence[str]) -> Html:
    """Plots of the metrics over the steps."""
    if not any(run.metrics for run in runs):
        return Html("")
    try:
        from hooktrain_report import curves as plots
    except ImportError:
        return Html(f"<p class='note'>{text(_NO_PLOTS)}</p>")

    several = len(runs) > 1
    drawn_events = plots.EVENTS.keys() - {"evaluation"}  # whose values are drawn
    marks = [(each["step"], each["kind"]) for each in runs[0].events if each.get("kind") in drawn_events]
    metrics = list(dict.fromkeys(name for run in runs for line in run.metrics for name in line))
    sets = [name for name in metrics if name.startswith("eval/")]
    others = [name for name in metrics if name not in _COUNTERS and name not in sets]
    norms = [name for name in others if "norm" in name]
    others = [name for name in others if name not in norms]
    figures: list[str] = []

    def add(title: str, series: Sequence[Any], scale: str = "", marked: bool = False) -> None:
        if series:
            drawn = plots.draw_lines(series, marks if marked else (), by_run=several, scale=scale)
            figures.append(f"<figure><figcaption>{text(title)}</figcaption>{plots.as_svg(drawn, title)}</figure>")

    add("training loss", plots.series_of(runs, names if several else ["loss"], "loss"), "log", marked=not several)
    for measured, members in _by_measure(sets).items():
        if several:
            for of, name in members:
                add(f"{measured}, {of}", plots.series_of(runs, names, name))
        else:
            found = [each for of, name in members for each in plots.series_of(runs, [of], name)]
            add(f"evaluation: {measured}" + (f", {members[0][0]}" if len(members) == 1 else ""), found)
    add("learning rate", plots.series_of(runs, names, "lr"))
    for name in norms:
        add(name, plots.series_of(runs, names, name), "log")
    add("tokens per second", plots.series_of(runs, names, "tokens_per_second"), "zero")
    add("memory, GiB", plots.memory_of(runs, names), "zero")
    for name in others[:_MOST_PLOTS]:
        add(name, plots.series_of(runs, names, name))
    left = others[_MOST_PLOTS:]
    note = f"<p class='note'>Without a plot: {text(', '.join(left))}</p>" if left else ""
    return Html(f"<div class='plots'>{''.join(figures)}</div>{note}{_not_finite(runs, names)}")


def _not_finite(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """Name the values that no plot can show."""
    found = []
    for run, name in zip(runs, names, strict=True):
        odd: dict[str, list[Any]] = {}
        for line in run.metrics:
            for metric, value in line.items():
                if not _is_finite(value):
                    odd.setdefault(metric, []).append(line["step"])
        found += [
            f"{name}: {metric} is not finite in {len(at)} lines, first at step {at[0]}" for metric, at in odd.items()
        ]
    return "".join(f"<p class='warning'>{text(each)}</p>" for each in found)


def _by_measure(metrics: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Sets and names such as ``eval/<set>/loss`` by what they measure."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in metrics:
        of, measured = _set_and_measure(name, metrics)
        found.setdefault(measured, []).append((of, name))
    return found


def _set_and_measure(metric: str, metrics: Collection[str]) -> tuple[str, str]:
    """Divide ``eval/<set>/<measure>``, both of which may have slashes; every set has a loss."""
    parts = metric.split("/")
    for end in range(2, len(parts)):
        if "/".join([*parts[:end], "loss"]) in metrics:
            return "/".join(parts[1:end]), "/".join(parts[end:])
    return "/".join(parts[1:-1]) or metric, parts[-1]


def evaluation(runs: Sequence[RunFiles], names: Sequence[str]) -> Html:
    """First, last, lowest and highest value of each metric of each evaluation set."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        found: dict[str, list[tuple[float, int]]] = {}
        for line in run.metrics:
            for metric, value in line.items():
                if metric.startswith("eval/") and _is_finite(value):
                    found.setdefault(metric, []).append((value, line["step"]))
        for metric, values in found.items():
            low, high = min(values), max(values, key=lambda each: (each[0], -each[1]))
            rows.append(
                [
                    *([name] if len(runs) > 1 else []),
                    *_set_and_measure(metric, found),
                    number(values[0][0]),
                    number(values[-1][0]),
                    f"{number(low[0])} at {low[1]:,}",
                    f"{number(high[0])} at {high[1]:,}",
                    len(values),
                ]
            )
    heads = [*(["run"] if len(runs) > 1 else []), "set", "metric", "first", "last", "lowest", "highest", "times"]
    rows.sort(key=lambda row: (row[-7], row[-6]))
    return table(heads, rows, numbers=range(len(heads) - 5, len(heads))) if rows else Html("")


# --------------------------------------------------------------------------------------------------------- events


def events(runs: Sequence[RunFiles], names: Sequence[str]) -> Html:
    """Steps over time with the events on them, and the list of these."""
    if not any(run.events for run in runs):
        return Html("")
    drawn = ""
    try:
        from hooktrain_report import curves as plots
    except ImportError:
        pass
    else:
        figure = plots.draw_timeline(runs, names)
        drawn = f"<div class='timeline'>{plots.as_svg(figure, 'steps over time')}</div>" if figure else ""
    lists = [_list_of(run, name if len(runs) > 1 else "") for run, name in zip(runs, names, strict=True)]
    return Html(drawn + "".join(lists))


def _list_of(run: RunFiles, name: str) -> str:
    told = [each for each in run.events if each.get("kind") != "memory"]
    if not told:
        return ""
    began = run.events[0]["time"]
    rows = [
        (duration(each["time"] - began), number(each.get("step", "")), each.get("kind", ""), each.get("text", ""))
        for each in told[-_MOST_EVENTS:]
    ]
    left = f" (the last {_MOST_EVENTS})" if len(told) > _MOST_EVENTS else ""
    head = f"{name}: {len(told)} events{left}" if name else f"{len(told)} events{left}"
    return details(head, table(("after", "step", "event", ""), rows, numbers=(1,)))


def warnings(run: RunFiles) -> Html:
    """Warnings of the run and of its data, each once."""
    told: dict[str, str] = dict.fromkeys(map(str, run.data.get("warnings", ())), "")
    for each in run.events:
        if each.get("kind") == "warning":
            told.setdefault(str(each.get("text", "")), f"step {number(each.get('step', 0))}: ")
    return Html("".join(f"<p class='warning'>{text(at + said)}</p>" for said, at in told.items()))


def checkpoints(run: RunFiles) -> Html:
    """Saves that are complete, with their places where the events tell them."""
    rows = [
        (number(each.get("step", "")), _clock(each["time"]), each.get("text", ""))
        for each in run.events
        if each.get("kind") == "checkpoint"
    ]
    if rows:
        return table(("step", "time", "folder"), rows, numbers=(0,))
    last = run.facts["checkpoint"]
    return Html(f"<p class='said'>{text(last)}</p>") if last else Html("")


# -------------------------------------------------------------------------------------------------------- answers


def answers(run: RunFiles) -> Html:
    """The first and the last answer to each prompt, and those between them."""
    prompts: dict[str, dict[Any, str]] = {}
    for each in run.samples:
        prompts.setdefault(str(each["prompt"]), {})[each["step"]] = str(each["answer"])
    parts = []
    for prompt, found in prompts.items():
        steps = list(found)
        shown = [_answer(step, found[step]) for step in (steps if len(steps) == 1 else (steps[0], steps[-1]))]
        between = "".join(_answer(step, found[step]) for step in steps[1:-1])
        more = details(f"{len(steps) - 2} answers in between", between) if between else ""
        parts.append(f"<h3 class='said'>{text(prompt)}</h3><div class='answers'>{''.join(shown)}</div>{more}")
    return Html("".join(parts))


def _answer(step: Any, said: str) -> str:
    when = "before training" if step == 0 else f"after step {number(step)}"
    return (
        f"<div><p class='note'>{text(when)}</p><blockquote class='said'>{text(said or '(nothing)')}</blockquote></div>"
    )


# ----------------------------------------------------------------------------------------------------------- data


def data(run: RunFiles) -> Html:
    """What became of every token, by set, and where the examples came from."""
    report = run.data
    sets = {"train": report.get("train"), **(report.get("evaluation") or {})}
    known = {name: found for name, found in sets.items() if isinstance(found, Mapping)}
    parts = [f"<p>{text(report['summary'])}</p>" if report.get("summary") else ""]
    parts += [_bar(name, found) for name, found in known.items() if found.get("tokens_in")]
    keys = list(dict.fromkeys(key for found in known.values() for key, value in found.items() if _is_finite(value)))
    rows = [(key.replace("_", " "), *(number(found.get(key, "")) for found in known.values())) for key in keys]
    if rows:
        inside = table(("", *known), rows, numbers=range(1, len(known) + 1))
        inside = Html(inside + "".join(_histograms(name, found) for name, found in known.items()))
        parts.append(details("counts and lengths", inside))
    sources = [each for each in report.get("sources", ()) if isinstance(each, Mapping)]
    rows = [
        (
            each.get("source", ""),
            each.get("use", ""),
            number(each.get("rows", "")),
            number(each.get("tokens", "")),
            each.get("why", ""),
        )
        for each in sources
    ]
    if rows:
        parts.append(table(("source", "set", "examples", "tokens", "format"), rows, numbers=(2, 3)))
    return Html("".join(parts))


def _bar(name: str, found: Mapping[str, Any]) -> str:
    whole = found["tokens_in"]
    shares = {label: float(found.get(key, 0) or 0) for label, (key, _) in _TOKENS.items()}
    shares["kept as context"] = float(found.get("tokens_kept", 0)) - shares["trained"]
    shown = {label: share for label, share in shares.items() if share > 0}
    spans = "".join(
        f"<span style='flex:{share:g};background:{_TOKENS[label][1]}'></span>" for label, share in shown.items()
    )
    legend = "".join(
        f"<span><span class='swatch' style='background:{_TOKENS[label][1]}'></span>"
        f"{text(f'{label} {number(share)} ({share / whole:.1%})')}</span> "
        for label, share in shown.items()
    )
    head = text(f"{name}: {number(whole)} tokens")
    return f"<h3>{head}</h3><div class='bar'>{spans}</div><p class='legend note'>{legend}</p>"


def _histograms(name: str, found: Mapping[str, Any]) -> str:
    parts = []
    for title, each in (found.get("histograms") or {}).items():
        edges, counts = each["edges"], each["counts"]
        most = max([*counts, 1])
        lines = "".join(
            f"<span>{number(begin)} to {number(end - 1)}</span><i style='width:{100 * count / most:.1f}%'></i>"
            f"<span>{number(count)}</span>"
            for begin, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
        )
        parts.append(f"<h3>{text(f'{name}: {title}')}</h3><div class='histogram'>{lines}</div>")
    return "".join(parts)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
