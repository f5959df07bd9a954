"""Results as JSON lines: one for each case, with all that was measured and where."""

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

__all__ = [
    "FILE",
    "Line",
    "find",
    "line_of",
    "read",
    "require_folder",
    "circumstances",
    "values",
    "write",
]

FILE = "results.jsonl"
"""The file in the folder of results."""
Line = dict[str, Any]
"""A line of a file of results."""


def circumstances(folder: Path) -> dict[str, Any]:
    """Date, commit, machine and versions: what is the same for all lines of a measurement.

    Args:
        folder: in the repository whose commit is told.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **commit(folder),
        "machine": describe(),
        "versions": installed(),
    }


def line_of(result: CaseResult, around: Mapping[str, Any], settings: Mapping[str, Any]) -> Line:
    """What is written of a case.

    Args:
        result: what it gave.
        around: see :func:`circumstances`.
        settings: of the command line.
    """
    case = result.case
    return {
        "suite": result.suite,
        "case": case.name,
        "about": case.about,
        **around,
        "settings": {**settings, "turns": result.turns},
        "parameters": dict(case.parameters),
        "recipe": case.recipe,
        "baseline": case.baseline,
        "metrics": [_metric(metric) for metric in case.metrics],
        "sides": {side.name: _side(result, side) for side in case.sides},
        "comparisons": [_comparison(line) for line in result.comparisons],
        "seconds": round(result.seconds, 2),
        "runs": result.runs,
    }


def _metric(metric: Any) -> dict[str, Any]:
    return {"name": metric.name, "unit": metric.unit, "better": metric.better, "exact": metric.exact}


def _side(result: CaseResult, side: Variant) -> dict[str, Any]:
    """How it was run, and the number of each run in each metric."""
    runs = result.runs[side.name]
    failed = next((run["failed"] for run in runs if "failed" in run), None)
    whole = [run for run in runs if "failed" not in run]
    numbers = {
        metric.name: [metric.of(run, result.case.warmup_steps) for run in whole]
        for metric in result.case.metrics
        if whole and all(_holds(metric, run, result.case.warmup_steps) for run in whole)
    }
    noise = max((run.get("others") or 0.0 for run in whole), default=0.0)
    found: dict[str, Any] = {
        "values": numbers,
        "process": side.driver is not None or side.isolated,
        "others": noise,
    }
    if failed:
        found["failed"] = failed
        if any("absent" in run for run in runs):
            found["absent"] = True
    if side.driver:
        found |= {"driver": side.driver, "specification": side.specification}
    if side.peer:
        found["peer"] = side.peer.name
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
    """Make the folder for results, before hours are spent.

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
    """Add a line; a measurement that is interrupted leaves what it had."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(_finite(line), default=str) + "\n")


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def read(path: Path) -> list[Line]:
    """The lines of a file of results; of a case that stands there twice the last.

    Raises:
        BenchError: when it holds something else.
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
            advice = "a write that was cut short leaves such a line; remove it"
            raise _no_results(path, f"line {at} is no JSON: {problem.args[0]}; {advice}") from problem
        missing = [name for name in ("suite", "case") if name not in line] if isinstance(line, dict) else ["suite"]
        if missing:
            raise _no_results(path, f"line {at} has no '{missing[0]}'")
        lines[key(line)] = line
    return list(lines.values())


def _no_results(path: Path, why: str) -> BenchError:
    return BenchError(f"bench: given {path}, expected a file of results as `hooktrain bench` writes it ({why})")


def find(word: str, places: Sequence[Path]) -> list[Line]:
    """The results that a word of the command line names: a file, a folder with one, or the start of a commit.

    Args:
        word: as it was given.
        places: folders below which files are looked through for the commit; of lines of one case the newest counts.

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
        f"bench: given '{word}', expected a file or folder of results, or the first letters of a commit that has some"
        f" below {looked}"
    )


def _lines_of(file: Path) -> Iterable[Line]:
    try:
        return [line for line in read(file) if line.get("commit")]
    except BenchError:  # another program's
        return []


def key(line: Line) -> tuple[str, str]:
    """What makes two lines those of the same case."""
    return line["suite"], line["case"]


def values(line: Line, side: str, metric: str) -> list[float]:
    """The number of each run, empty when there is none."""
    found: list[float] = line["sides"].get(side, {}).get("values", {}).get(metric, [])
    return found
