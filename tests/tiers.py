"""pytest hooks for the two tiers: shards of the thorough one, and files that start with the longest.

``tests/durations.json`` holds recorded seconds: of each file of the default tier and of each thorough test.
``--record-durations`` replaces those of the tests that ran.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["DURATIONS", "divide", "read_durations"]

DURATIONS = Path(__file__).parent / "durations.json"
UNKNOWN = 10.0
"""Seconds of a thorough test that nobody has recorded."""

_seconds: dict[str, float] = defaultdict(float)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers", "tiers of hooktrain's own tests")
    group.addoption("--shard", metavar="K/N", help="of the selected thorough tests only the K-th of N parts")
    group.addoption("--record-durations", action="store_true", help=f"write tests/{DURATIONS.name}")


def read_durations() -> dict[str, dict[str, float]]:
    """Recorded seconds: ``files`` of the default tier, and ``thorough`` tests by their node ids."""
    return json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {"files": {}, "thorough": {}}


def divide(tests: Iterable[str], seconds: Mapping[str, float], parts: int) -> list[list[str]]:
    """Divide tests into parts of about the same length, always in the same way.

    Tests of a file stay together, as they share fixtures, unless the file takes more than half of a part.

    Args:
        tests: node ids.
        seconds: recorded for them.
        parts: how many.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for test in sorted(tests):
        files[test.partition("::")[0]].append(test)

    def length(group: Sequence[str]) -> float:
        return sum(seconds.get(test, UNKNOWN) for test in group)

    limit = sum(map(length, files.values())) / parts / 2
    groups = []
    for group in files.values():
        groups += [group] if length(group) <= limit else [[test] for test in group]
    found: list[list[str]] = [[] for _ in range(parts)]
    for group in sorted(groups, key=lambda group: (-length(group), group)):
        min(found, key=lambda part: (length(part), found.index(part))).extend(group)
    return found


@pytest.hookimpl(trylast=True)  # when tests of the other tier are deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    recorded = read_durations()
    if config.getoption("shard"):
        _keep_shard(config, items, recorded["thorough"])
    files = recorded["files"]
    # with pytest-xdist a file that is begun at last keeps one worker busy while the other has nothing left to do
    items.sort(key=lambda item: -files.get(_file(item.nodeid), 0.0))


def _keep_shard(config: pytest.Config, items: list[pytest.Item], seconds: Mapping[str, float]) -> None:
    match = re.fullmatch(r"(\d+)/(\d+)", config.getoption("shard"))
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise pytest.UsageError(f"--shard: given {config.getoption('shard')}, expected K/N such as 3/10")
    number, parts = int(match[1]), int(match[2])
    thorough = [item.nodeid for item in items if item.get_closest_marker("thorough")]
    shards = divide(thorough, seconds, parts)
    chosen = set(shards[number - 1])
    left = [item for item in items if item.nodeid not in chosen]
    items[:] = [item for item in items if item.nodeid in chosen]
    config.hook.pytest_deselected(items=left)

    def minutes(tests: Iterable[str]) -> str:
        return f"{sum(seconds.get(test, UNKNOWN) for test in tests) / 60:.1f} min recorded"

    others = [test for shard in shards for test in shard if test not in chosen]
    config.stash[_SUMMARY] = [
        f"shard {number}/{parts}: {len(chosen)} tests ({minutes(chosen)})",
        f"left out: {len(others)} tests ({minutes(others)}) of the other shards",
        f"to repeat: python -m pytest -m thorough --shard {number}/{parts}",
    ]


_SUMMARY: pytest.StashKey[list[str]] = pytest.StashKey()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of pytest-xdist has collected, which the process that reports does not."""
    if "shard" in getattr(node, "workeroutput", {}):
        node.config.stash[_SUMMARY] = node.workeroutput["shard"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in terminalreporter.config.stash.get(_SUMMARY, []):
        terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file stays on one worker: its fixtures are made, and what it needs is imported, once."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") == "load":
        config.option.loadscopereorder = False
        return LoadFileScheduling(config, log)
    return None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] += report.duration
    if "thorough" in report.keywords:
        _thorough.add(report.nodeid)


_thorough: set[str] = set()


def _file(test: str) -> str:
    return test.partition("::")[0]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["shard"] = session.config.stash.get(_SUMMARY, [])
        return
    if not session.config.getoption("record_durations"):
        return
    recorded = read_durations()
    files: dict[str, float] = defaultdict(float)
    for test, spent in _seconds.items():
        if test in _thorough:
            recorded["thorough"][test] = round(spent, 1)
        else:
            files[_file(test)] += spent
    recorded["files"].update({file: round(spent, 1) for file, spent in files.items()})
    there = {
        tier: {test: spent for test, spent in found.items() if Path(_file(test)).exists()}
        for tier, found in recorded.items()
    }
    DURATIONS.write_text(json.dumps(there, indent=1, sort_keys=True) + "\n", encoding="utf-8")
