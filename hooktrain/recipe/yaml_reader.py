"""Reading a recipe: strictly from YAML, and overridden from the command line; what it means is of no concern here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hooktrain.errors import Complaint, RecipeError

__all__ = ["apply_overrides", "read_recipe"]


class _StrictLoader(yaml.SafeLoader):
    """YAML as everybody reads it, except that a key given twice is an error."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: dict[Any, yaml.Mark] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key '{key}' is given twice, in line {seen[key].line + 1} and here", key_node.start_mark
            )
        seen[key] = key_node.start_mark
    return dict(loader.construct_pairs(node, deep=True))


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file.

    Raises:
        RecipeError: when the file is missing, not YAML, has a key twice, or is no mapping.
    """

    def refuse(message: str) -> RecipeError:
        return RecipeError([Complaint("", message)], source=str(path))

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise refuse("there is no such file; give the path of a YAML recipe") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise refuse(f"cannot be read ({problem}); give the path of a YAML recipe") from problem
    try:
        raw = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as problem:
        line = "" if problem.problem_mark is None else f"line {problem.problem_mark.line + 1}: "
        raise refuse(f"{line}{problem.problem}; correct the YAML") from problem
    except yaml.YAMLError as problem:
        raise refuse(f"{' '.join(str(problem).split())}; correct the YAML") from problem
    if raw is None:
        raise refuse("is empty, expected keys and values such as 'type: sft'")
    if not isinstance(raw, dict):
        raise refuse(f"given {type(raw).__name__}, expected keys and values such as 'type: sft'")
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``key=value`` words, such as ``optimizer.lr=1e-4`` or ``data.sources.0=rows.jsonl``; values are YAML.

    Raises:
        RecipeError: for a word without ``=``, or a path that leads into something that is no mapping or list.
    """
    result = json.loads(json.dumps(raw, default=str))
    complaints = []
    for word in overrides:
        path, equals, text = word.partition("=")
        if not equals or not path:
            complaints.append(Complaint("", f"-o {word}: expected key=value, such as -o optimizer.lr=1e-4"))
            continue
        try:
            _set(result, path.split("."), yaml.load(text, Loader=_StrictLoader))
        except (KeyError, IndexError, ValueError, TypeError) as problem:
            complaints.append(Complaint("", f"-o {word}: {problem.args[0] if problem.args else problem}"))
        except yaml.YAMLError:
            complaints.append(Complaint("", f"-o {word}: the value is not YAML; put it in quotes"))
    if complaints:
        raise RecipeError(complaints, source="command line")
    return dict(result)


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
