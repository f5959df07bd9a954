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
from hooktrain.bench.interleave import CaseResult
from hooktrain.bench.machine import commit, describe, installed
from hooktrain.bench.model import Variant
from hooktrain.bench.verdicts import noise

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
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **commit(folder),
        "machine": describe(),
        "versions": installed(),
    }


def line_of(result: CaseResult, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> Line:
    """Return the line of a case.

    Args:
        result: its result.
        facts: see :func:`environment_facts`.
        settings: settings of the command line.
    """
    case = result.case
    return {
        "suite": result.suite,
        "case": case.name,
        "about": case.about,
        **facts,
        "settings": {**settings, "runs_per_variant": result.runs_per_variant},
        "parameters": dict(case.parameters),
        "recipe": case.recipe,
        "baseline": case.baseline,
        "metrics": [_metric(metric) for metric in case.metrics],
        "variants": {variant.name: _variant(result, variant) for variant in case.variants},
        "comparisons": [_comparison(line) for line in result.comparisons],
        "seconds": round(result.seconds, 2),
        "runs": result.runs,
    }


def _metric(metric: Any) -> dict[str, Any]:
    return {"name": metric.name, "unit": metric.unit, "better": metric.better, "exact": metric.exact}


def _variant(result: CaseResult, variant: Variant) -> dict[str, Any]:
    """Return how a variant was run, and the number of each run in each metric."""
    runs = result.runs[variant.name]
    failed = next((run for run in runs if "error" in run), None)
    complete = [run for run in runs if "error" not in run]
    numbers = {
        metric.name: [metric.of(run, result.case.warmup_steps) for run in complete]
        for metric in result.case.metrics
        if complete and all(_holds(metric, run, result.case.warmup_steps) for run in complete)
    }
    found: dict[str, Any] = {
        "values": numbers,
        "process": variant.has_process,
        "others": noise({variant.name: complete}, [variant.name]),
    }
    if failed:
        found |= {key: failed[key] for key in ("error", "not_installed") if key in failed}
    if variant.driver:
        found |= {"driver": variant.driver, "specification": variant.specification}
    if variant.peer:
        found["peer"] = variant.peer.name
    return found


def _holds(metric: Any, run: Mapping[str, Any], warmup_steps: int) -> bool:
    try:
        metric.of(run, warmup_steps)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return False
    return True


def _comparison(line: Any) -> dict[str, Any]:
    found = attrs.asdict(line)
    if line.figure is not None:
        found["figure"] = list(line.figure)
    return found


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
