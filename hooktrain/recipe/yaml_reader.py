"""Reading a recipe: strictly from YAML, and overridden from the command line; what it means is of no concern here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hooktrain.config import local_path
from hooktrain.errors import Complaint, RecipeError
from hooktrain.masking import MASK, mask_words, remember, still_masked
from hooktrain.plugin.discovery import UNTRUSTED

__all__ = ["apply_overrides", "masked_values", "read_recipe", "recipe_files"]


_BYTES = 1 << 20
"""Most bytes of a recipe; one with a thousand sources has a tenth of them."""
_NODES = 100_000
"""Most keys and values of a recipe, each alias counted with all that it stands for."""
_DEPTH = 64
"""Most levels of lists and mappings within each other."""
_INTEGER = 1 << 63
_LONG = 64
"""Most characters of a number or a date; reading thousands of digits takes minutes."""
_PLACEHOLDER = re.compile(r"\{\{\s*[\w.]+\s*\}\}")


class _StrictLoader(yaml.SafeLoader):
    """YAML as everybody reads it, except that a key given twice is an error, and what is beyond any recipe's size."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = self._count = 0
        self._counts: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, counting levels, and what aliases repeat, before any of it is built."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        before, self._depth = self._count, self._depth + 1
        if self._depth > _DEPTH:
            raise _refused(f"more than {_DEPTH} levels of lists and mappings within each other", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._counts:
            raise _refused("an alias stands for a value that it is a part of", mark)
        self._count += self._counts[id(node)] if is_alias else 1
        if self._count > _NODES:
            raise _refused(f"more than {_NODES:,} keys and values, aliases counted with what they stand for", mark)
        if not is_alias:
            self._counts[id(node)] = self._count - before
        return node

    def fetch_flow_collection_start(self, token: Any) -> Any:
        """Read ``[`` or ``{``; the scanner looks ahead, with a time that grows with the square of the levels."""
        if self.flow_level >= _DEPTH:
            raise _refused(f"more than {_DEPTH} levels of lists and mappings within each other", self.get_mark())
        return super().fetch_flow_collection_start(token)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Build a value; one that Python or a recipe cannot hold is an error of its line."""
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float", "timestamp", "bool") and len(node.value) > _LONG:
            raise _refused(f"a number of {len(node.value):,} characters; put it in quotes", node.start_mark)
        try:
            value = super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, TypeError, LookupError, AttributeError) as problem:
            raise _refused(f"the value cannot be read as {kind} ({_short(problem)})", node.start_mark) from problem
        if isinstance(value, int) and abs(value) > _INTEGER:
            raise _refused("a whole number beyond 64 bits", node.start_mark)
        if isinstance(value, str) and (odd := _ODD.search(value)):
            raise _refused(f"the text holds the character U+{ord(odd[0]):04X}, which no file can hold", node.start_mark)
        return value


_ODD = re.compile("[\0\ud800-\udfff]")


def _refused(text: str, mark: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, mark)


def _short(problem: Exception) -> str:
    return " ".join(str(problem).split())[:100]


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: dict[Any, yaml.Mark] = {}
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            kind = "list" if isinstance(key_node, yaml.SequenceNode) else "mapping"
            held = key_node.start_mark.buffer[key_node.start_mark.pointer - 1 :] if key_node.start_mark.buffer else ""
            unfilled = ", as of a placeholder '{{ }}' that nothing was filled in for" if held.startswith("{{") else ""
            raise _refused(f"a {kind} stands where a key is expected{unfilled}", key_node.start_mark)
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, (str, int, float, type(None))):
            raise _refused(f"a key is a {type(key).__name__}, expected text; put it in quotes", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key '{key}' is given twice, in line {seen[key].line + 1} and here", key_node.start_mark
            )
        seen[key] = key_node.start_mark
    return dict(loader.construct_pairs(node, deep=True))


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _load(text: str) -> Any:
    """Read YAML strictly.

    Raises:
        yaml.YAMLError: it is not YAML, or more than a recipe holds.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (RecursionError, MemoryError, ValueError, OverflowError, TypeError, LookupError) as problem:
        # of a loader that was not written for those who mean harm
        raise yaml.YAMLError(f"cannot be read ({type(problem).__name__}: {_short(problem)})") from problem


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file, on top of the one that its ``base`` names.

    Raises:
        RecipeError: when a file is missing, not YAML, has a key twice, is no mapping, is larger or nested deeper than
            any recipe, or is its own base.
    """
    made: dict[str, Any] = {}
    for _, raw in reversed(_chain(path)):
        made = _merged(made, raw)
    made.pop("base", None)
    return made


def recipe_files(path: Path) -> list[Path]:
    """Return the file of a recipe, its base, the base of that, and so on.

    Raises:
        RecipeError: one of them cannot be read, is its own base, or is not in the folder of a stranger's recipe.
    """
    return [file for file, _ in _chain(path)]


def _chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Read each file of a recipe once, as one may be a pipe; the recipe's own is the first."""
    found = [(path, _read_file(path))]
    seen = {path.resolve()}
    while (base := found[-1][1].get("base")) is not None:
        source = found[-1][0]

        def refuse(expected: str, given: Any = base, source: Path = source) -> RecipeError:
            return RecipeError([Complaint("base", f"given {given!r}, expected {expected}")], source=str(source))

        if not isinstance(base, str):
            raise refuse("the path of another recipe")
        try:
            file = source.parent / local_path(base)
        except ValueError as problem:
            raise RecipeError([Complaint("base", str(problem))], source=str(source)) from None
        if not file.is_file():
            raise refuse(f"a file, and there is no {file}")
        real = file.resolve()
        if real in seen:
            raise refuse("another recipe than one that is built on it")
        if os.environ.get(UNTRUSTED) and not real.is_relative_to(path.resolve().parent):
            raise refuse("a file in the folder of the recipe, which is not yours")
        seen.add(real)
        found.append((file, _read_file(file)))
    return found


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Put one mapping on top of another: mappings are merged, unless their ``type`` differs; all else is replaced."""
    made = dict(below)
    for key, value in above.items():
        old = made.get(key)
        made[key] = value
        if isinstance(value, Mapping) and isinstance(old, Mapping) and value.get("type") in (None, old.get("type")):
            made[key] = _merged(old, value)
    return made


def _read_file(path: Path) -> dict[str, Any]:
    """Read one file of a recipe."""

    def refuse(message: str) -> RecipeError:
        data = _is_data(path, held)
        return RecipeError([Complaint("", _DATA.format(path=path) if data else message)], source=str(path))

    held = b""
    try:
        with path.open("rb") as opened:
            held = opened.read(_BYTES + 1)
        text = held.decode("utf-8-sig")
    except FileNotFoundError:
        raise refuse("there is no such file; give the path of a YAML recipe") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise refuse(f"cannot be read ({problem}); give the path of a YAML recipe") from problem
    if len(held) > _BYTES:
        raise refuse(f"is larger than {_BYTES >> 20} MiB; give the path of a YAML recipe")
    try:
        raw = _load(text)
    except yaml.MarkedYAMLError as problem:
        line = "" if problem.problem_mark is None else f"line {problem.problem_mark.line + 1}: "
        raise refuse(f"{line}{problem.problem}; correct the YAML") from problem
    except yaml.YAMLError as problem:
        raise refuse(f"{' '.join(str(problem).split())}; correct the YAML") from problem
    if raw is None:
        raise refuse("is empty, expected keys and values such as 'type: sft'")
    if not isinstance(raw, dict):
        raise refuse(f"given {type(raw).__name__}, expected keys and values such as 'type: sft'")
    unfilled = [
        Complaint(where, f"given '{text}', a placeholder that nothing was filled in for; write the value")
        for where, text in _values(raw, "")
        if isinstance(text, str) and "template" not in where and _PLACEHOLDER.fullmatch(text.strip())
    ]
    if unfilled:
        raise RecipeError(unfilled, source=str(path))
    return raw


_DATA = (
    "these are data, expected a recipe; write a YAML file with `data: {{sources: [{path}]}}` and a `model`, and train"
    " that, see `hooktrain guide recipes`"
)
_DATA_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")


def _is_data(path: Path, held: bytes) -> bool:
    """Whether a file that is no recipe holds examples, by its name or as its first line is one of JSON."""
    if not held:
        return False
    try:
        first = json.loads(held.lstrip().partition(b"\n")[0])
    except ValueError:  # also UnicodeDecodeError
        first = None
    return isinstance(first, (dict, list)) or path.suffix.lower() in _DATA_ENDINGS


def _values(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield the values of a recipe that are no lists or mappings, with their paths."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _values(inner, f"{where}[{number}]")
    else:
        yield where, value


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``key=value`` words, such as ``optimizer.lr=1e-4`` or ``data.sources.0=rows.jsonl``; values are YAML.

    Raises:
        RecipeError: for a word without ``=``, or a path that leads into something that is no mapping or list.
    """
    result = json.loads(json.dumps(raw, default=str))
    complaints = []
    for word, shown in zip(overrides, mask_words(overrides), strict=True):
        path, equals, text = word.partition("=")
        if not equals or not path:
            complaints.append(Complaint("", f"-o {shown}: expected key=value, such as -o optimizer.lr=1e-4"))
            continue
        if path.count(".") >= _DEPTH:
            complaints.append(Complaint("", f"-o {path[:40]}...: a path of more than {_DEPTH} keys; correct it"))
            continue
        try:
            _set(result, path.split("."), _load(text))
        except (KeyError, IndexError, ValueError, TypeError) as problem:
            complaints.append(Complaint("", f"-o {shown}: {problem.args[0] if problem.args else problem}"))
        except yaml.YAMLError:
            complaints.append(Complaint("", f"-o {shown}: the value is not YAML; put it in quotes"))
    remember(result)
    if os.environ.get(UNTRUSTED):
        given = {word.partition("=")[0] for word in overrides}
        complaints += [
            Complaint(
                where, f"runs code that comes with the model, in a recipe that is not yours; -o {where}=true lets it"
            )
            for where, value in _values(result, "")
            if where.endswith("trust_remote_code") and value is True and where not in given
        ]
    if complaints:
        raise RecipeError(complaints, source="command line" if overrides else "recipe")
    return dict(result)


def masked_values(raw: Mapping[str, Any]) -> list[Complaint]:
    """Return an error for each secret that a run has masked in the recipe that it kept."""
    said = f"given {MASK}, as the run that kept this recipe masked it; write the value, or give it with -o"
    return [Complaint(where, said) for where in dict.fromkeys(still_masked(raw))]


def _set(target: Any, path: Sequence[str], value: Any) -> None:
    for depth, key in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(target, list):
            if not key.isdigit() or int(key) > len(target) or (int(key) == len(target) and not last):
                raise ValueError(f"'{'.'.join(path[:depth])}' is a list of {len(target)}; '{key}' is no place in it")
            if last and int(key) == len(target):
                target.append(value)
            elif last:
                target[int(key)] = value
            else:
                target = target[int(key)]
        elif isinstance(target, dict):
            if last:
                target[key] = value
            else:
                if target.get(key) is None:
                    target[key] = {}
                target = target[key]
        else:
            raise ValueError(f"'{'.'.join(path[:depth])}' is {target!r}, not a mapping; it has no '{key}'")
