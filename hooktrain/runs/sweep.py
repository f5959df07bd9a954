"""The runs of a sweep: every combination of the values of some keys, each with a run directory of its own."""

from __future__ import annotations

import hashlib
import itertools
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from hooktrain.runs.files import add_results
from hooktrain.runs.table import facts_of
from hooktrain.training.run_record import FILE

__all__ = ["SweepRun", "checkpoint_words", "combinations", "split_values", "summary"]

_LONGEST = 120
"""Characters of a run directory's name, at most."""
_OPENING, _CLOSING = "[{(", ")}]"


@attrs.frozen(kw_only=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        values: what it has of its own, by key, as it is written.
        folder: its run directory.
    """

    values: Mapping[str, str]
    folder: Path

    @property
    def is_complete(self) -> bool:
        """Whether it has come to its end."""
        facts = facts_of(self.folder) if (self.folder / FILE).is_file() else {"state": "", "status": 0}
        return facts["state"] == "ended" and not facts["status"]

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values.items()) or "the recipe as it is"


def split_values(text: str) -> list[str]:
    """Split ``1e-5,2e-5`` at its commas; those within brackets and quotes belong to a value."""
    found, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += character
    return [value.strip() for value in found]


def combinations(folder: Path, words: Sequence[str], seeds: Sequence[int] = ()) -> tuple[list[str], list[SweepRun]]:
    """Return the words that all runs share, and the runs.

    Args:
        folder: the folder of their directories.
        words: ``key=value`` or ``key=value,value``, checked.
        seeds: seeds of each combination; none leaves the recipe's.
    """
    pairs = [(key, split_values(text)) for key, _, text in (word.partition("=") for word in words)]
    shared = [f"{key}={values[0]}" for key, values in pairs if len(values) == 1]
    keys = {key: values for key, values in pairs if len(values) > 1}
    if seeds:
        keys["seed"] = [str(seed) for seed in seeds]
    short = _short_names(list(keys))
    made = [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]
    runs = [SweepRun(values=each, folder=folder / _name(each, short)) for each in made]
    names = [run.folder for run in runs]
    return shared, [run if names.count(run.folder) == 1 else attrs.evolve(run, folder=_distinct(run)) for run in runs]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each key, or all of it where two end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def _name(values: Mapping[str, str], short: Mapping[str, str]) -> str:
    text = "_".join(f"{short[key]}={value}" for key, value in values.items()) or "run"
    return re.sub(r"[^\w=.+-]+", "-", text)[:_LONGEST]


def _distinct(run: SweepRun) -> Path:
    mark = hashlib.sha256(repr(sorted(run.values.items())).encode()).hexdigest()[:8]
    return run.folder.with_name(f"{run.folder.name}-{mark}")


def checkpoint_words(raw: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the words with which a run saves into its own folder, and resumes from there."""
    given = raw.get("checkpoint")
    if given is None or given == []:
        return []
    if isinstance(given, str):
        return [f"checkpoint={{type: {given}, auto_resume: true}}"]
    words = []
    for where, entry in (
        [("", given)] if isinstance(given, Mapping) else [(f".{at}", each) for at, each in enumerate(given)]
    ):
        if isinstance(entry, str):
            words.append(f"checkpoint{where}={{type: {entry}, auto_resume: true}}")
            continue
        words.append(f"checkpoint{where}.auto_resume=true")
        if isinstance(entry, Mapping) and entry.get("output_dir"):
            own = folder / f"output{where.replace('.', '-')}" / Path(str(entry["output_dir"])).name
            words.append(f"checkpoint{where}.output_dir={own}")
    return words


def summary(runs: Sequence[SweepRun]) -> list[dict[str, Any]]:
    """Return a row for each combination, with the runs of its seeds together, the lowest loss first.

    Returns:
        For each combination its ``values``, the ``folders`` of its runs, how many have ``ended``, their ``states``, and
        in ``losses`` the last training loss and the lowest of each evaluation set, each as mean and standard deviation
        over the runs that have one.
    """
    groups: dict[tuple[tuple[str, str], ...], list[SweepRun]] = {}
    for run in runs:
        groups.setdefault(tuple((key, value) for key, value in run.values.items() if key != "seed"), []).append(run)
    rows = []
    for values, members in groups.items():
        found = add_results([facts_of(run.folder) for run in members if (run.folder / FILE).is_file()])
        losses: dict[str, list[float]] = {}
        for facts in found:
            for name, value in _losses(facts):
                losses.setdefault(name, []).append(value)
        rows.append(
            {
                "values": dict(values),
                "folders": [str(run.folder) for run in members],
                "ended": sum(run.is_complete for run in members),
                "states": [facts["state"] for facts in found] + ["not started"] * (len(members) - len(found)),
                "losses": {
                    name: [statistics.mean(each), statistics.stdev(each) if len(each) > 1 else None]
                    for name, each in losses.items()
                },
            }
        )
    return sorted(rows, key=_lowest)


def _losses(facts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    loss = facts["metrics"].get("loss")
    if isinstance(loss, (int, float)):
        yield "loss", float(loss)
    for name, (value, _) in facts["best"].items():
        if name != "loss":
            yield name, float(value)


def _lowest(row: Mapping[str, Any]) -> tuple[bool, float]:
    """What rows are sorted by: the first evaluation set's loss, or the training's."""
    names = [name for name in row["losses"] if name != "loss"] or ["loss"]
    found = row["losses"].get(names[0])
    return found is None, 0.0 if found is None else found[0]
