"""Comparison of two measurements: changes beyond the noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from hooktrain.bench.bootstrap import Interval, median_of, ratio_of_medians, ratio_of_ratios
from hooktrain.bench.errors import BenchError
from hooktrain.bench.results import Line, key, values
from hooktrain.bench.verdicts import NOISY, verdict_on_change

__all__ = ["Change", "broken", "changes", "machine_differences"]


@attrs.frozen(kw_only=True)
class Change:
    """The change of a variant's number in a metric between two measurements of a case.

    Attributes:
        before, after: medians; with ``to_baseline``, of the ratios to the case's baseline, without a unit.
        to_baseline: whether the ratios to the baseline are compared. Each measurement's baseline ran at the same time
            on the same machine, so that a slower machine makes no difference.
        exact: whether the metric is the same in every run.
        figure: after / before.
        verdict: ``better``, ``worse``, ``alike``, ``differs`` or ``undecided``.
        regression: whether it is worse beyond the noise and the tolerance. A time that is not compared with a baseline
            counts only on the same machine, with no other program running.
        noisy: whether other programs used the machine during one of the two, where that matters.
    """

    suite: str
    case: str
    variant: str
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
    """Return the changes of everything that both measured.

    Args:
        before, after: lines of results.
        tolerance: how much worse a ratio may be, because the interval of a measurement does not include what differs
            between two days on one machine.

    Raises:
        BenchError: when they have no case in common.
    """
    earlier = {key(line): line for line in before}
    common = [(earlier[key(line)], line) for line in after if key(line) in earlier]
    if not common:
        raise BenchError(
            f"bench: given results of {_names(before)} and of {_names(after)}, expected a case that both have"
        )
    same = _are_of_one_machine(before, after)
    return [change for one, other in common for change in _of_case(one, other, tolerance, same)]


def _of_case(one: Line, other: Line, tolerance: float, same_machine: bool) -> Iterator[Change]:
    for metric in other["metrics"]:
        name, exact = metric["name"], bool(metric.get("exact"))
        bases = [values(line, line["baseline"], name) for line in (one, other)]
        for variant in other["variants"]:
            pair = [values(line, variant, name) for line in (one, other)]
            if not all(pair):
                continue
            relative = (
                variant != other["baseline"] and one["baseline"] == other["baseline"] and all(bases) and not exact
            )
            if relative:
                figure = ratio_of_ratios((pair[1], bases[1]), (pair[0], bases[0]))
                shown = [
                    ratio_of_medians(found, base, samples=1).value for found, base in zip(pair, bases, strict=True)
                ]
            else:
                figure = ratio_of_medians(pair[1], pair[0], paired=False)
                shown = [median_of(found, samples=1).value for found in pair]
            verdict, why = verdict_on_change(figure, metric["better"], min(map(len, pair)), exact=exact)
            noisy = not exact and any(_others(line, variant) > NOISY for line in (one, other))
            counts = exact or relative or (same_machine and not noisy)
            yield Change(
                suite=other["suite"],
                case=other["case"],
                variant=variant,
                metric=name,
                unit="" if relative else metric["unit"],
                before=shown[0],
                after=shown[1],
                to_baseline=relative,
                exact=exact,
                figure=figure,
                verdict=verdict,
                why=why,
                regression=counts and verdict == "worse" and _beyond(figure, metric["better"], tolerance),
                noisy=noisy,
            )


def _others(line: Line, variant: str) -> float:
    return float(line["variants"][variant].get("others") or 0.0)


def _beyond(figure: Interval, better: str, tolerance: float) -> bool:
    nearest = figure.low if better == "lower" else figure.high
    nearest = figure.value if nearest is None else nearest
    return nearest > 1 + tolerance if better == "lower" else nearest < 1 / (1 + tolerance)


def broken(before: Sequence[Line], after: Sequence[Line]) -> list[str]:
    """Return a sentence for each variant that was measured before and fails now, unless its peer is missing."""
    now = {key(line): line for line in after}
    said = []
    for line in before:
        for variant, facts in line["variants"].items():
            found = now.get(key(line), {}).get("variants", {}).get(variant, {})
            if "error" in found and not found.get("not_installed") and "error" not in facts:
                said.append(f"{line['suite']}: {line['case']}, {variant}: error: {found['error']}")
    return said


def machine_differences(before: Sequence[Line], after: Sequence[Line]) -> list[str]:
    """Return a sentence for each difference of machine, settings or versions between two measurements."""
    one, other = before[-1], after[-1]
    said = []
    for what in _MACHINE:
        pair = _machine(one).get(what), _machine(other).get(what)
        if pair[0] != pair[1]:
            said.append(f"they were measured on different machines ({what}: {pair[0]} before, {pair[1]} after)")
    if any((line.get("settings") or {}).get("quick") for line in (one, other)):
        said.append("a quick measurement only shows that everything works")
    versions: list[dict[str, str]] = [line.get("versions") or {} for line in (one, other)]
    for name in sorted(versions[0].keys() & versions[1].keys()):
        if versions[0][name] != versions[1][name]:
            said.append(f"{name} was {versions[0][name]} and is {versions[1][name]}")
    return said


_MACHINE = ("processor", "cores", "gpus")


def _machine(line: Line) -> dict[str, Any]:
    return line.get("machine") or {}


def _are_of_one_machine(before: Sequence[Line], after: Sequence[Line]) -> bool:
    facts = [_machine(lines[-1]) for lines in (before, after)]
    return bool(facts[0]) and all(facts[0].get(name) == facts[1].get(name) for name in _MACHINE)


def _names(lines: Sequence[Line]) -> str:
    return ", ".join(f"{line['suite']}: {line['case']}" for line in lines) or "nothing"
