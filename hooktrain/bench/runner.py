"""Runs of suites: from what plugins contribute to lines of results."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs

from hooktrain.bench.environments import Peer, ensure
from hooktrain.bench.errors import BenchError
from hooktrain.bench.interleave import run_variants
from hooktrain.bench.machine import usable_cores
from hooktrain.bench.model import Case, Context, Skip, Suite
from hooktrain.bench.results import FILE, Line, environment_facts, line_of, require_folder, write
from hooktrain.bench.subprocesses import Runner
from hooktrain.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = ["Settings", "gather", "run_suites", "select"]

_ENVS = Path("~/.cache/hooktrain/benchmarks")


@attrs.frozen(kw_only=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        quick: whether runs are few and short, only to show that everything works.
        rounds: rounds, in each of which each variant runs twice. By default those of the case, or 5; with ``quick`` a
            single run.
        threads: number of cores to use, the first of those that this process may use; by default all.
        envs: folder of peers' environments.
        timeout: seconds after which a process is killed.
        options: the suites' own settings.
    """

    quick: bool = False
    rounds: int | None = None
    threads: int | None = None
    envs: Path = _ENVS
    timeout: float = 1800.0
    options: Mapping[str, str] = attrs.field(factory=dict)


def gather(host: PluginHost) -> dict[str, tuple[Suite, str]]:
    """Return each suite by its name, with the plugin that contributes it.

    Raises:
        PluginError: when two plugins contribute the same name, or a plugin contributes something that is no suite.
    """
    found: dict[str, tuple[Suite, str]] = {}
    for implementation in host.implementations("register_benchmarks"):
        plugin, contribute = (
            implementation.plugin_name,
            cast(Callable[[], Iterable[Any] | None], implementation.function),
        )
        for suite in contribute() or ():
            if not isinstance(suite, Suite):
                raise PluginError(
                    f"plugin '{plugin}', hook register_benchmarks: given {suite!r}, expected hooktrain.bench.Suite"
                )
            if suite.name in found:
                raise PluginError(
                    f"the plugins '{found[suite.name][1]}' and '{plugin}' both contribute the suite '{suite.name}';"
                    f" disable one of them with -p no:{plugin}"
                )
            if suite.name == "plugin":
                raise PluginError(
                    f"plugin '{plugin}', hook register_benchmarks: given a suite named 'plugin', which is the name of"
                    " the command `hooktrain bench plugin`; give it another name"
                )
            found[suite.name] = (suite, plugin)
    return dict(sorted(found.items()))


def select(words: Sequence[str], known: Mapping[str, tuple[Suite, str]]) -> list[tuple[Suite, frozenset[str] | None]]:
    """Return the suites that words such as ``sft`` and ``sft:fp32`` name, each with its cases or None for all.

    Raises:
        BenchError: when there is no such suite.
    """
    chosen: dict[str, frozenset[str] | None] = {}
    for word in words:
        name, _, case = word.partition(":")
        if name not in known:
            raise BenchError(
                f"bench: given '{name}', expected a suite{did_you_mean(name, known)}:"
                f" {', '.join(known) or 'there are none'}"
            )
        before = chosen.get(name, frozenset())
        chosen[name] = None if not case or before is None else before | {case}
    return [(known[name][0], cases) for name, cases in chosen.items()]


def run_suites(
    suites: Iterable[Suite | tuple[Suite, frozenset[str] | None]],
    settings: Settings = Settings(),
    *,
    out: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
    done: Callable[[Line], None] = lambda line: None,
) -> list[Line]:
    """Measure suites.

    Args:
        suites: suites, each alone or with the names of the cases to measure.
        settings: settings of the measurement.
        out: folder for ``results.jsonl``, which is written line by line.
        say: called with messages about progress.
        done: called with the line of each case when it is finished.

    Returns:
        A line for each case, as in the file; for a suite or case that cannot be measured on this machine, one with
        ``skipped``, which is not in the file.

    Raises:
        BenchError: when a selected case or a setting does not exist, or ``out`` cannot be written.
    """
    suites = list(suites)
    _require_known(settings.options, [each[0] if isinstance(each, tuple) else each for each in suites])
    cores = len(usable_cores())
    if (settings.threads or 1) > cores:
        raise BenchError(
            f"--threads: given {settings.threads}, expected at most {cores} cores, which this process may use"
        )
    if out is not None:
        require_folder(out)
    envs = settings.envs.expanduser().absolute()
    with tempfile.TemporaryDirectory(prefix="hooktrain-bench-") as folder, _pinned(settings.threads) as threads:

        @functools.cache
        def python(peer: Peer | None) -> Path:
            return ensure(peer, envs, only_find=settings.quick) if peer else Path(sys.executable)

        runner = Runner(Path(folder) / "homes", python, settings.timeout, threads)
        recorded = {"quick": settings.quick, "threads": threads, "options": dict(settings.options)}
        lines: list[Line] = []
        for each in suites:
            suite, selected = each if isinstance(each, tuple) else (each, None)
            where = Path(folder) / suite.name
            where.mkdir()
            context = Context(
                quick=settings.quick,
                folder=where,
                envs=envs,
                threads=threads,
                runner=runner,
                selected=selected,
                options=settings.options,
            )
            met: set[str] = set()
            try:
                for case in suite.make(context):
                    met.add(case.name)
                    say(f"{suite.name}: {case.name}{f': skipped: {case.skip}' if case.skip else ''}")
                    if case.skip:
                        lines.append({"suite": suite.name, "case": case.name, "skipped": case.skip})
                        continue
                    began, count = time.perf_counter(), _runs_per_variant(case, settings)
                    runs = run_variants(case, runner, count, say)
                    seconds = time.perf_counter() - began
                    facts = environment_facts(_home(suite))  # of each case: torch, which knows GPUs, is loaded by now
                    lines.append(line_of(suite, case, runs, seconds, facts, recorded | {"runs_per_variant": count}))
                    if out is not None:
                        write(out / FILE, lines[-1])
                    done(lines[-1])
            except Skip as reason:
                say(f"{suite.name}: skipped: {reason}")
                lines.append({"suite": suite.name, "skipped": str(reason)})
                continue
            if selected and selected - met:
                missing = ", ".join(f"'{name}'" for name in sorted(selected - met))
                others = context.made - selected
                meant = "".join(did_you_mean(name, others) for name in sorted(selected - met))
                raise BenchError(
                    f"bench: the suite '{suite.name}' has no case {missing}{' in --quick' * settings.quick}{meant};"
                    f" there are {', '.join(sorted(context.made)) or 'none'}"
                )
        return lines


def _require_known(options: Mapping[str, str], suites: Sequence[Suite]) -> None:
    known = {name: about for suite in suites for name, about in suite.options.items()}
    for name in options:
        if name not in known:
            there = ", ".join(f"{name} ({about})" for name, about in known.items())
            raise BenchError(
                f"--set {name}: expected a setting of {' or '.join(suite.name for suite in suites)}"
                f"{did_you_mean(name, known)}: {there or 'there are none'}"
            )


def _runs_per_variant(case: Case, settings: Settings) -> int:
    if settings.quick and settings.rounds is None:
        return 1
    return 2 * (settings.rounds or case.rounds or 5)


def _home(suite: Suite) -> Path:
    """Return the folder whose commit is recorded with the results: that of the suite, if it has a function."""
    return Path(inspect.getfile(suite.cases) if inspect.isfunction(suite.cases) else __file__).parent


@contextlib.contextmanager
def _pinned(wanted: int | None) -> Iterator[int]:
    """Keep this process and its children on the first of the cores that it may use; yield their number."""
    before = usable_cores()
    chosen = before[:wanted]
    if sys.platform != "linux":
        yield len(chosen)
        return
    os.sched_setaffinity(0, chosen)
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else None
    if torch is not None:
        torch.set_num_threads(len(chosen))
    try:
        yield len(chosen)
    finally:
        os.sched_setaffinity(0, before)
        if threads is not None:
            sys.modules["torch"].set_num_threads(threads)
