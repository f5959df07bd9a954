"""The files that a run writes into its directory, read for people who want to see the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import yaml

from hooktrain.errors import HooktrainError
from hooktrain.recipe import libyaml
from hooktrain.recipe.flat_values import flat_values
from hooktrain.runs.table import facts_of
from hooktrain.training.run_files import read_bytes, read_json
from hooktrain.training.run_record import FILE

__all__ = ["MetricsReader", "RunFiles", "add_results", "best_losses", "flat_recipe", "read_run", "recipe_differences"]

_EVENTS = "events.jsonl"
_SAMPLES = "samples.jsonl"
_DEPTH = 64
"""Most levels of lists and mappings within each other, as a recipe may have."""
_IGNORED = ("run_dir", "plugins.lock")
"""Keys in which recipes of two runs always differ."""


@attrs.frozen(kw_only=True)
class RunFiles:
    """Contents of a run directory.

    Attributes:
        folder: the directory.
        facts: how the run stands, as ``hooktrain runs --json`` prints it.
        metrics: the log lines, in the order of their steps.
        recipe: every value of the recipe by its path, such as ``optimizer.lr``.
        given: what was written of the recipe, nested; empty where a run has not noted it.
        source: the recipe's file, or what it was called.
        plugins: the active plugins.
        environment: versions, machine, commit and command.
        data: the report on the data.
        samples: answers to fixed prompts, each with ``step``, ``prompt`` and ``answer``.
        events: what happened, each with ``time``, ``step``, ``kind`` and, where there is one, ``text``.
        problems: why a file, or a part of one, cannot be read.
    """

    folder: Path
    facts: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = ()
    recipe: Mapping[str, Any] = attrs.field(factory=dict)
    given: Mapping[str, Any] = attrs.field(factory=dict)
    source: str = ""
    plugins: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] = attrs.field(factory=dict)
    data: Mapping[str, Any] = attrs.field(factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[str] = ()


def read_run(folder: Path | str) -> RunFiles:
    """Read what a run has written into its directory, while it runs or afterwards.

    Args:
        folder: the run directory.

    Raises:
        HooktrainError: there is no record of a run.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise HooktrainError(
            f"run: given '{folder}', which has no {FILE}; expected the directory of a run; `hooktrain runs` lists them"
        )
    problems: list[str] = []
    facts = facts_of(folder)
    recipe = _mapping(folder / "recipe.yaml", problems)
    manifest = _mapping(folder / "plugins.json", problems)
    noted = _of(manifest, "recipe", Mapping, {})
    lines = _lines(folder / _metrics_name(recipe), problems, missing=facts["step"] > 0)
    samples = [each for each in _lines(folder / _SAMPLES, problems) if {"step", "prompt", "answer"} <= set(each)]
    events = _lines(folder / _EVENTS, problems)
    return RunFiles(
        folder=folder,
        facts=facts,
        metrics=[line for line in lines if _is_number(line.get("step"))],
        recipe=dict(flat_values(recipe)),
        given=_of(noted, "given", Mapping, {}),
        source=str(noted.get("source", "")),
        plugins=[each for each in _of(manifest, "plugins", list, []) if isinstance(each, Mapping)],
        environment=_of(manifest, "environment", Mapping, {}),
        data=_mapping(folder / "data.json", problems),
        samples=_of_last_run(samples),
        events=[each for each in events if each.get("run") == facts["id"] and _is_number(each.get("time"))],
        problems=problems,
    )


def flat_recipe(folder: Path) -> dict[str, Any]:
    """Return every value of a run's recipe by its path; empty where it has left none that can be read."""
    return dict(flat_values(_mapping(folder / "recipe.yaml", [])))


def recipe_differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of the paths in which recipes differ, in the order of the recipes; None where one has none.

    Folders of results do not count.
    """
    paths = dict.fromkeys(path for recipe in recipes for path in recipe)
    found = {path: [recipe.get(path) for recipe in recipes] for path in paths}
    return {
        path: values
        for path, values in found.items()
        if any(value != values[0] for value in values)
        and path not in _IGNORED
        and not path.endswith((".output_dir", ".cache_dir"))
    }


def add_results(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add to facts about runs what came out of them.

    Returns:
        The facts, each with ``metrics``, the newest value of each, with ``best``, the lowest value and its step of each
        loss, and with ``differs``, the values of the recipe that are not the same in all runs.
    """
    found = []
    recipes = [flat_recipe(Path(run["folder"])) for run in runs]
    differing = recipe_differences([recipe for recipe in recipes if recipe])
    for run, recipe in zip(runs, recipes, strict=True):
        lines = MetricsReader(Path(run["folder"])).read()
        last = {name: value for line in lines for name, value in line.items()}
        own = {path: recipe.get(path) for path in differing} if recipe else {}
        found.append({**run, "metrics": last, "best": best_losses(lines), "differs": own})
    return found


def best_losses(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """Return the lowest of each loss, ``loss`` and ``eval/<set>/loss``, with its step."""
    found: dict[str, tuple[float, int]] = {}
    for line in lines:
        for name, value in line.items():
            is_loss = name == "loss" or (name.startswith("eval/") and name.endswith("/loss"))
            if is_loss and _is_number(value) and (name not in found or value < found[name][0]):
                found[name] = (float(value), int(line["step"]))
    return found


class MetricsReader:
    """Reads the log lines of a run as they are written.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _metrics_name(_mapping(folder / "recipe.yaml", []))
        self._file: tuple[int, int] | None = None
        self._read = 0

    def read(self) -> list[Mapping[str, Any]]:
        """Return the lines since the last call; all of them where the file is another one by now."""
        if not self._path.is_file():  # a pipe would wait
            return []
        try:
            with self._path.open("rb") as file:
                found = self._path.stat()
                if (found.st_dev, found.st_ino) != self._file or found.st_size < self._read:
                    self._file, self._read = (found.st_dev, found.st_ino), 0
                file.seek(self._read)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        lines = [_object(line) for line in whole.splitlines()]
        return [line for line in lines if line is not None and _is_number(line.get("step"))]


def _metrics_name(recipe: Mapping[str, Any]) -> str:
    return str(_of(recipe, "jsonl", Mapping, {}).get("file", "metrics.jsonl"))


def _mapping(path: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        text = read_bytes(path).decode()
        found = read_json(text) if path.suffix == ".json" else _yaml(text)
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        problems.append(f"{path.name} cannot be read ({' '.join(str(problem).split())})")
        return {}
    if not isinstance(found, Mapping):
        problems.append(f"{path.name} holds no mapping")
        return {}
    return found


def _yaml(text: str) -> Any:
    """Read a recipe as a run writes it; one with aliases could stand for more than fits into memory."""
    depth = 0
    for event in yaml.parse(text, Loader=libyaml.Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH or isinstance(event, yaml.AliasEvent):
            raise ValueError(f"an alias, or more than {_DEPTH} levels, as no run writes them")
    return libyaml.load(text)


def _lines(path: Path, problems: list[str], missing: bool = False) -> list[Mapping[str, Any]]:
    """The objects of a file of JSON lines; one that is being written is no problem."""
    try:
        text = read_bytes(path)
    except FileNotFoundError:
        if missing:
            problems.append(f"{path.name} is missing")
        return []
    except OSError as problem:
        problems.append(f"{path.name} cannot be read ({problem.strerror})")
        return []
    found = [_object(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
    if odd := found.count(None):
        problems.append(f"{path.name}: {odd} of {len(found)} lines cannot be read")
    return [each for each in found if each is not None]


def _object(line: bytes) -> Mapping[str, Any] | None:
    try:
        found = read_json(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, Mapping) else None


def _of(found: Mapping[str, Any], key: str, kind: Any, otherwise: Any) -> Any:
    value = found.get(key)
    return value if isinstance(value, kind) else otherwise


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _of_last_run(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave the answers of earlier runs in the folder out, which the first step after a later one ends."""
    starts = [
        number
        for number, each in enumerate(samples)
        if each["step"] == 0 and number and samples[number - 1]["step"] != 0
    ]
    return list(samples[starts[-1] if starts else 0 :])
