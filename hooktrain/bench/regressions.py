"""Two measurements beside each other: what has changed beyond the noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from hooktrain.bench.bootstrap import Interval, median_of, ratio_of_medians, ratio_of_ratios
from hooktrain.bench.errors import BenchError
from hooktrain.bench.results import Line, key, values
from hooktrain.bench.verdicts import NOISY, verdict_on_change

__all__ = ["Change", "broken", "changes", "judged", "regressions", "same_machine", "surprises"]


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
        noisy: whether other programs took part of the machine in one of the two, where that matters.
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
    noisy: bool = False


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
                noisy=not exact and any(_others(line, side) > NOISY for line in (one, other)),
            )


def _others(line: Line, side: str) -> float:
    return float(line["sides"][side].get("others") or 0.0)


def _beyond(figure: Interval, better: str, tolerance: float) -> bool:
    nearest = figure.low if better == "lower" else figure.high
    nearest = figure.value if nearest is None else nearest
    return nearest > 1 + tolerance if better == "lower" else nearest < 1 / (1 + tolerance)


def regressions(found: Sequence[Change], same_machine: bool) -> list[Change]:
    """What is worse beyond noise.

    Times that stand for themselves count only on the machine that they were measured on, when it did nothing else.
    """
    by_itself = (
        change for change in found if change.exact or change.to_baseline or (same_machine and not change.noisy)
    )
    return [change for change in by_itself if change.regression]


def judged(found: Sequence[Change], before: Sequence[Line], after: Sequence[Line]) -> list[Change]:
    """The changes, of which those alone are regressions that count between these two measurements."""
    counted = [id(change) for change in regressions(found, same_machine(before, after))]
    return [attrs.evolve(change, regression=id(change) in counted) for change in found]


def broken(before: Sequence[Line], after: Sequence[Line]) -> list[str]:
    """What could be measured and cannot any more, in sentences; where a peer is not installed, nothing is broken."""
    now = {key(line): line for line in after}
    said = []
    for line in before:
        for side, facts in line["sides"].items():
            found = now.get(key(line), {}).get("sides", {}).get(side)
            if found is not None and "failed" in found and not found.get("absent") and "failed" not in facts:
                said.append(f"{line['suite']}: {line['case']}, {side}: failed: {found['failed']}")
    return said


def surprises(before: Sequence[Line], after: Sequence[Line]) -> list[str]:
    """What keeps two measurements from being comparable, in sentences."""
    one, other = before[-1], after[-1]
    said = []
    for what in ("processor", "cores", "gpus"):
        pair = _machine(one).get(what), _machine(other).get(what)
        if pair[0] != pair[1]:
            said.append(f"they were measured on other machines ({what}: {pair[0]} before, {pair[1]} after)")
    if any((line.get("settings") or {}).get("quick") for line in (one, other)):
        said.append("a quick measurement shows that everything works, and no more")
    versions: list[dict[str, str]] = [line.get("versions") or {} for line in (one, other)]
    for name in sorted(versions[0].keys() & versions[1].keys()):
        if versions[0][name] != versions[1][name]:
            said.append(f"{name} was {versions[0][name]} and is {versions[1][name]}")
    return said


def _machine(line: Line) -> dict[str, Any]:
    return line.get("machine") or {}


def same_machine(before: Sequence[Line], after: Sequence[Line]) -> bool:
    """Whether both were measured on machines that describe themselves alike."""
    facts = [_machine(lines[-1]) for lines in (before, after)]
    return bool(facts[0]) and all(facts[0].get(name) == facts[1].get(name) for name in ("processor", "cores", "gpus"))


def _names(lines: Sequence[Line]) -> str:
    return ", ".join(f"{line['suite']}: {line['case']}" for line in lines) or "nothing"
