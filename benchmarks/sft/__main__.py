"""Measure hooktrain's fine-tuning beside the peers.

    python -m benchmarks.sft [--quick] [--cases fp32-trl,prepare] [--rounds 2] [--json FILE]

Peers are installed into environments of their own the first time. Sides take turns, forth and back, each run in a
process of its own on the same two cores; the first steps of each are thrown away. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.environments import ensure
from benchmarks.machine import commit, describe
from benchmarks.running import Findings, Runner, take_turns
from benchmarks.sft.cases import Case, Growth, Row
from benchmarks.sft.catalogue import CASES
from benchmarks.sft.groups import GROUPS, ONCE
from benchmarks.sft.inputs import InputsFailed, export_model, for_transformers_4, pack
from benchmarks.sft.rows import write_demo
from benchmarks.sft.sides import Plan, Training
from benchmarks.sft.table import table

_RESULTS = Path(__file__).parent.parent / "results"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sft", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--quick", action="store_true", help="few steps, few rows, one round: shows that it works")
    parser.add_argument("--cases", type=_cases, default=CASES, help=f"some of: {names}; all when left out")
    parser.add_argument("--rounds", type=int, help="each side runs twice in one (2; 1 with --quick)")
    parser.add_argument("--steps", type=int, help="measured steps of each run (8; 3 with --quick)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (2)")
    parser.add_argument("--threads", type=int, default=2, help="cores, and threads of each side (2)")
    parser.add_argument("--envs", type=Path, default=Path("~/.cache/hooktrain/benchmarks"), help="the peers' home")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds after which a run is given up (1800)")
    parser.add_argument(
        "--json", type=Path, help="where the results go (results/sft.json, with --quick sft-quick.json)"
    )
    given = parser.parse_args(words)
    given.rounds = given.rounds or (1 if given.quick else 2)
    given.steps = given.steps or (3 if given.quick else 8)
    given.json = given.json or _RESULTS / ("sft-quick.json" if given.quick else "sft.json")
    return given


def _cases(text: str) -> tuple[Case | Growth, ...]:
    known = {case.name: case for case in CASES}
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no case '{unknown[0]}'; expected some of {', '.join(known)}")
    return tuple(case for case in CASES if case.name in text.split(","))


def main() -> None:
    """Measure, write the results after every group, and print the table."""
    given = arguments()
    if hasattr(os, "sched_setaffinity"):  # what is started from here inherits it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    envs = given.envs.expanduser().absolute()
    python = functools.lru_cache(lambda peer: ensure(peer, envs) if peer else Path(sys.executable))
    rows: list[Row] = []
    runs: dict[str, dict[str, list[Findings]]] = {}
    with tempfile.TemporaryDirectory(prefix="hooktrain-benchmarks-") as folder:
        work = Path(folder)
        runner = Runner(work / "homes", python, given.timeout)
        try:
            training = _inputs(given, envs, work, runner)
        except (InputsFailed, FileNotFoundError) as problem:
            sys.exit(f"benchmarks.sft: {problem}")
        for group, sides_of in GROUPS.items():
            cases = [case for case in given.cases if case.group == group]
            if not cases:
                continue
            _say(f"{group}:")
            sides = sides_of(training, work)
            wanted = {name for case in cases if isinstance(case, Case) for name in case.sides}
            wanted |= {s.name for s in sides for case in cases if isinstance(case, Growth) and case.has(s.name)}
            turns = 1 if group in ONCE else 2 * given.rounds
            runs[group] = take_turns([side for side in sides if side.name in wanted], runner, turns, _say)
            rows += [case.row(runs[group], given.warmup) for case in cases]
            _write(given.json, given, rows, runs)
    print(table(rows))
    _say(f"written to {given.json}")


def _inputs(given: argparse.Namespace, envs: Path, work: Path, runner: Runner) -> Training:
    demo = write_demo(work)
    model = export_model(envs / "SmolLM2-135M-Instruct", demo, runner, given.threads)
    plan = Plan(
        model=model,
        model_4=for_transformers_4(model, work / "model-4"),
        rows=demo,
        threads=given.threads,
        steps=given.warmup + given.steps,
        warmup=given.warmup,
        many=(500, 5_000) if given.quick else (10_000, 100_000),
        lengths=(512, 1024, 2048) if given.quick else (512, 1024, 2048, 4096, 8192, 16384),
        packed_lengths=1_000_000,
    )
    training = Training(plan)
    if any(case.group in ("fp32", "bf16") for case in given.cases):
        pack(work / "packs.pt", training, runner)
    return training


def _write(path: Path, given: argparse.Namespace, rows: Sequence[Row], runs: Any) -> None:
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **commit(Path(__file__).parent),
        "machine": describe(),
        "settings": {name: getattr(given, name) for name in ("quick", "rounds", "steps", "warmup", "threads")},
        "rows": [attrs.asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # a line for each run, so that a difference between two files can be read
    lines = [
        f"    {json.dumps({'group': group, 'side': side, **run})}"
        for group, sides in runs.items()
        for side, found in sides.items()
        for run in found
    ]
    head = json.dumps(record, indent=2, default=str).rstrip("}").rstrip()
    path.write_text(head + ',\n  "runs": [\n' + ",\n".join(lines) + "\n  ]\n}\n", encoding="utf-8")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
