"""Two measurements beside each other: what has changed beyond the noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from hooktrain.bench.ratios import Interval, median_of, ratio_of_medians, ratio_of_ratios
from hooktrain.bench.results import BenchError, Line, key, values
from hooktrain.bench.verdicts import verdict_on_change

__all__ = ["Change", "changes", "regressions", "same_machine", "surprises"]


@attrs.frozen(kw_only=True)
class Change:
    """How a side's number in a metric differs between two measurements of one case.

    Attributes:
        before, after: medians; where ``to_baseline``, of the ratios to the case's baseline, without a unit.
        exact: whether the metric repeats from run to run.
        to_baseline: whether the ratios to the baseline are compared. Each measurement's baseline ran beside its sides,
            at the same time on the same machine, so that a machine that has become slower does not count.
        figure: after / before.
        verdict: ``better``, ``worse``, ``alike``, ``differs`` or ``undecided``.
        regression: whether it is worse beyond the noise and the tolerance.
    """

    suite: str
    case: str
    side: str
    metric: str
    unit: str
    before: float
    after: float
    to_baseline: bool
    exact: bool
    figure: Interval
    verdict: str
    why: str
    regression: bool


def changes(before: Sequence[Line], after: Sequence[Line], tolerance: float = 0.05) -> list[Change]:
    """Everything that both measured.

    Args:
        before, after: lines of results.
        tolerance: how much worse a ratio may be; the interval of one measurement does not hold what differs between
            two days on one machine.

    Raises:
        BenchError: when they have no case in common.
    """
    earlier = {key(line): line for line in before}
    common = [(earlier[key(line)], line) for line in after if key(line) in earlier]
    if not common:
        raise BenchError(
            f"bench: the two results have no case in common; the one has {_names(before)}, the other {_names(after)}"
        )
    return [change for one, other in common for change in _of_case(one, other, tolerance)]


def _of_case(one: Line, other: Line, tolerance: float) -> Iterator[Change]:
    for metric in other["metrics"]:
        name, exact = metric["name"], bool(metric.get("exact"))
        bases = [values(line, line["baseline"], name) for line in (one, other)]
        for side in other["sides"]:
            pair = [values(line, side, name) for line in (one, other)]
            if not all(pair):
                continue
            relative = side != other["baseline"] and one["baseline"] == other["baseline"] and all(bases) and not exact
            if relative:
                figure = ratio_of_ratios((pair[1], bases[1]), (pair[0], bases[0]))
                shown = [
                    ratio_of_medians(found, base, samples=1).value for found, base in zip(pair, bases, strict=True)
                ]
            else:
                figure = ratio_of_medians(pair[1], pair[0], in_turns=False)
                shown = [median_of(found, samples=1).value for found in pair]
            verdict, why = verdict_on_change(figure, metric["better"], min(map(len, pair)), exact=exact)
            yield Change(
                suite=other["suite"],
                case=other["case"],
                side=side,
                metric=name,
                unit="" if relative else metric["unit"],
                before=shown[0],
                after=shown[1],
                to_baseline=relative,
                exact=exact,
                figure=figure,
                verdict=verdict,
                why=why,
                regression=verdict == "worse" and _beyond(figure, metric["better"], tolerance),
            )


def _beyond(figure: Interval, better: str, tolerance: float) -> bool:
    nearest = figure.low if better == "lower" else figure.high
    nearest = figure.value if nearest is None else nearest
    return nearest > 1 + tolerance if better == "lower" else nearest < 1 / (1 + tolerance)


def regressions(found: Sequence[Change], same_machine: bool) -> list[Change]:
    """What is worse beyond noise; times that stand for themselves count only on the machine they were measured on."""
    return [change for change in found if change.regression and (change.to_baseline or change.exact or same_machine)]


def surprises(before: Sequence[Line], after: Sequence[Line]) -> list[str]:
    """What keeps two measurements from being comparable, in sentences."""
    one, other = before[-1], after[-1]
    said = []
    for what in ("processor", "cores", "gpus"):
        pair = one["machine"].get(what), other["machine"].get(what)
        if pair[0] != pair[1]:
            said.append(f"they were measured on other machines ({what}: {pair[0]} before, {pair[1]} after)")
    if one["settings"].get("quick") or other["settings"].get("quick"):
        said.append("a quick measurement shows that everything works, and no more")
    for name in sorted(one["versions"].keys() & other["versions"].keys()):
        if one["versions"][name] != other["versions"][name]:
            said.append(f"{name} was {one['versions'][name]} and is {other['versions'][name]}")
    return said


def same_machine(before: Sequence[Line], after: Sequence[Line]) -> bool:
    """Whether both were measured on machines that describe themselves alike."""
    facts: list[dict[str, Any]] = [lines[-1]["machine"] for lines in (before, after)]
    return all(facts[0].get(name) == facts[1].get(name) for name in ("processor", "cores", "gpus"))


def _names(lines: Sequence[Line]) -> str:
    return ", ".join(f"{line['suite']}: {line['case']}" for line in lines) or "nothing"
