"""Results as JSON lines: one for each case, with each run, the machine and the versions."""

from __future__ import annotations

import datetime
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from hooktrain.bench.errors import BenchError
from hooktrain.bench.machine import commit, describe, installed
from hooktrain.bench.model import Case, Findings, Measured, Metric, Suite, Variant
from hooktrain.bench.verdicts import compare_variants, noise

__all__ = [
    "FILE",
    "Line",
    "environment_facts",
    "find",
    "line_of",
    "read",
    "require_folder",
    "values",
    "write",
]

FILE = "results.jsonl"
"""Name of the file in a folder of results."""
Line = dict[str, Any]
"""A line of a file of results."""


def environment_facts(folder: Path) -> dict[str, Any]:
    """Return the date, commit, machine and versions.

    Args:
        folder: a folder of the repository whose commit is recorded.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **commit(folder),
        "machine": describe(),
        "versions": installed(),
    }


def line_of(
    suite: Suite, case: Case, runs: Measured, seconds: float, facts: Mapping[str, Any], settings: Mapping[str, Any]
) -> Line:
    """Return the line of a case.

    Args:
        suite, case: what was measured.
        runs: findings of each run, by variant.
        seconds: duration of the measurement.
        facts: see :func:`environment_facts`.
        settings: settings of the measurement.
    """
    return {
        "suite": suite.name,
        "case": case.name,
        "about": case.about,
        **facts,
        "settings": settings,
        "parameters": dict(case.parameters),
        "recipe": case.recipe,
        "baseline": case.baseline,
        "metrics": [
            {"name": one.name, "unit": one.unit, "better": one.better, "exact": one.exact} for one in case.metrics
        ],
        "variants": {variant.name: _variant(case, variant, runs[variant.name]) for variant in case.variants},
        "comparisons": [attrs.asdict(line) for line in compare_variants(case, runs)],
        "seconds": round(seconds, 2),
        "runs": runs,
        "over": suite.over,
    }


def _variant(case: Case, variant: Variant, runs: Sequence[Findings]) -> dict[str, Any]:
    """Return how a variant was run, and the number of each run in each metric."""
    failed = next((run for run in runs if "error" in run), {})
    complete = [run for run in runs if "error" not in run]
    found: dict[str, Any] = {
        "values": {
            metric.name: [metric.of(run, case.warmup_steps) for run in complete]
            for metric in case.metrics
            if complete and all(_holds(metric, run, case.warmup_steps) for run in complete)
        },
        "process": variant.has_process,
        "others": noise({variant.name: complete}, [variant.name]),
        **{key: failed[key] for key in ("error", "not_installed") if key in failed},
    }
    if variant.driver:
        found |= {"driver": variant.driver, "specification": variant.specification}
    if variant.peer:
        found["peer"] = variant.peer.name
    return found


def _holds(metric: Metric, run: Findings, warmup_steps: int) -> bool:
    try:
        metric.of(run, warmup_steps)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return False
    return True


def require_folder(out: Path) -> None:
    """Make the folder for results, before anything is measured.

    Raises:
        BenchError: when nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as problem:
        raise BenchError(f"--out: '{out}' cannot be written ({problem.strerror}); give another folder") from problem


def write(path: Path, line: Line) -> None:
    """Append a line, so that an interrupted measurement keeps what it has."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(_finite(line), default=str) + "\n")


def _finite(value: Any) -> Any:
    """Return a value with None for infinity and NaN, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def read(path: Path) -> list[Line]:
    """Return the lines of a file of results; of a case that is in it twice, the last.

    Raises:
        BenchError: when it is no such file, or one that hooktrain 0.1 wrote.
    """
    if path.is_dir():
        path = path / FILE
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as problem:
        raise _no_results(path, str(problem)) from problem
    lines: dict[tuple[str, str], Line] = {}
    for at, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as problem:
            advice = "an interrupted write leaves such a line; remove it"
            raise _no_results(path, f"line {at} is no JSON: {problem.args[0]}; {advice}") from problem
        missing = [name for name in ("suite", "case") if name not in line] if isinstance(line, dict) else ["suite"]
        if missing:
            raise _no_results(path, f"line {at} has no '{missing[0]}'")
        if "sides" in line:
            raise _no_results(path, f"line {at} is of hooktrain 0.1, which named variants 'sides'; measure again")
        lines[key(line)] = line
    return list(lines.values())


def _no_results(path: Path, why: str) -> BenchError:
    return BenchError(f"bench: given {path}, expected a file of results as `hooktrain bench` writes it ({why})")


def find(word: str, places: Sequence[Path]) -> list[Line]:
    """Return the results that a word of the command line names: a file, a folder with one, or a commit's first letters.

    Args:
        word: the word.
        places: folders whose files are searched for the commit; of a case's lines the newest counts.

    Raises:
        BenchError: when there are none.
    """
    if Path(word).exists():
        return read(Path(word))
    if len(word) >= 4 and all(letter in "0123456789abcdef" for letter in word.lower()):
        files = sorted({file for place in places if place.is_dir() for file in place.rglob("*.jsonl")})
        lines = [line for file in files for line in _lines_of(file) if line["commit"].startswith(word.lower())]
        if lines:
            lines.sort(key=lambda line: str(line["date"]))
            return list({key(line): line for line in lines}.values())
    looked = ", ".join(map(str, places))
    raise BenchError(
        f"bench: given '{word}', expected a file or folder of results, or the first letters of a commit with results in"
        f" {looked}"
    )


def _lines_of(file: Path) -> Iterable[Line]:
    try:
        return [line for line in read(file) if line.get("commit")]
    except BenchError:  # a file of another program
        return []


def key(line: Line) -> tuple[str, str]:
    """Return what two lines of the same case have in common."""
    return line["suite"], line["case"]


def values(line: Line, variant: str, metric: str) -> list[float]:
    """Return the number of each run; empty when there are none."""
    found: list[float] = line["variants"].get(variant, {}).get("values", {}).get(metric, [])
    return found
