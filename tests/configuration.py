"""Generates the configuration reference from the config classes of the engine and of the plugins of this project."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from hooktrain.config import BatchSize, Bytes, CheckpointConfig, Seconds, unstructure
from hooktrain.plugin.config import PluginsConfig
from hooktrain.plugin.manager import PluginHost
from hooktrain.recipe.generation import GenerationSettings
from hooktrain.recipe.json_schema import field_docs
from hooktrain.recipe.model import Recipe
from hooktrain.training.load import make_host

KINDS = ("model", "tokenizer", "data", "source", "loss", "optimizer", "scheduler", "strategy", "checkpoint", "metric")
"""Kinds of parts, in the order of the reference."""
NOT_KEYS = ("settings",)
"""Fields of a recipe that are not its keys."""
PARTS = tuple(kind for kind in KINDS if kind not in ("source", "metric"))
"""Keys whose description are the tables of their kind."""
WORDS = {
    str: "text",
    Path: "path",
    bool: "bool",
    int: "int",
    float: "number",
    Seconds: "seconds",
    Bytes: "bytes",
    BatchSize: "int or `auto`",
    type(None): "null",
    Any: "any",
}


def reference() -> str:
    """Return every key of a recipe with its type, default and meaning, in Markdown."""
    host = make_host(discover=True)
    parts = ["## Top level", _about(Recipe), _table(_rows(Recipe))]
    parts += ["## eval_generation", _about(GenerationSettings), _table(_rows(GenerationSettings))]
    for kind in KINDS:
        shown: dict[str, type] = {"checkpoint": CheckpointConfig} if kind == "checkpoint" else {}
        for name, config in shown.items():
            parts += [f"## {name}", _about(config), _table(_rows(config))]
        for part in sorted(_first_party(host, kind), key=lambda part: len(_rows(part.config))):
            key = {"source": "data.sources", "metric": "eval_metrics"}.get(kind, kind)
            rows = _rows(part.config)
            # the largest part shown before whose keys all are this one's too
            also = [name for name, config in shown.items() if rows.keys() >= (_rows(config)).keys()]
            also = [name for name in also if _rows(shown[name]) == _rows(shown[also[-1]])][:1]
            rest = [row for row in rows if not (also and row in _rows(shown[also[0]]))]
            known = f" It has the keys of `{also[0]}`{', and:' if rest else '.'}" if also else ""
            parts += [f"## {key}: `{part.name}`", _about(part.config, part) + known, _table(rest)]
            shown[part.name] = part.config
        for name, config in _entries(shown.values()).items():
            parts += [f"## {kind}.{name}", _about(config), _table(_rows(config))]
    parts += ["## plugins", _about(PluginsConfig), _table(_rows(PluginsConfig))]
    for part in _first_party(host, "settings"):
        parts += [f"## {part.name}", _about(part.config, part), _table(_rows(part.config))]
        for item in attrs.fields(part.config):
            if attrs.has(item.type):
                parts += [f"## {part.name}.{item.name}", _about(item.type), _table(_rows(item.type))]
    return "\n\n".join(filter(None, parts))


def _entries(configs: Iterable[type]) -> dict[str, type]:
    """Return the classes of which the configs have lists, by the key of the list."""
    return {
        item.name: get_args(item.type)[0]
        for config in configs
        for item in attrs.fields(config)  # type: ignore[arg-type]
        if get_origin(item.type) is tuple and attrs.has(get_args(item.type)[0])
    }


def _first_party(host: PluginHost, kind: str) -> Iterator[Any]:
    for part in host.parts.get(kind, {}).values():
        if part.listed and part.config.__module__.partition(".")[0].startswith("hooktrain"):
            yield part


def _about(config: type, part: Any = None) -> str:
    text = " ".join((inspect.getdoc(config) or "").partition("\n\n")[0].split()).replace("``", "`")
    plugin = getattr(part, "plugin", None)
    return text if plugin is None else f"{text} From `{plugin.distribution}`."


def _table(rows: Iterable[str]) -> str:
    return "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows]) if [*rows] else ""


def _rows(config: type) -> dict[str, None]:
    """Return the lines of a config's table, in order."""
    attrs.resolve_types(config)  # type: ignore[type-var]
    docs = field_docs(config)
    rows = {}
    for item in attrs.fields(config):  # type: ignore[arg-type]
        hidden = config is Recipe and (item.name in NOT_KEYS or item.metadata.get("internal"))
        if item.init and not hidden:
            keys = ", ".join(f"`{key}`" for key in (item.name, *item.metadata.get("aliases", ())))
            kind = item.metadata.get("kind")
            type_ = f"{'list of ' if item.metadata['many'] else ''}{kind}" if kind else _type(item.type)
            cells = (keys, type_, _default(item), docs.get(item.name, ""))
            rows["| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"] = None
    return rows


def _type(target: Any) -> str:
    if target in WORDS:
        return WORDS[target]
    origin, members = get_origin(target), get_args(target)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in members if each is not type(None))
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in members)
    if attrs.has(target):
        return "mapping"
    if target is dict or origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "mapping"
    inner = [each for each in members if each is not Ellipsis]
    return f"list of {_type(inner[0])}" if inner else "list"


def _default(item: Any) -> str:
    if item.metadata.get("inherit"):
        return f"`{item.metadata['inherit']}`"
    if item.metadata.get("kind"):
        return "none" if item.metadata["many"] or item.default is None else "of the trainer type"
    if item.default is attrs.NOTHING:
        return "of the plugins" if item is attrs.fields(Recipe).type else "required"
    factory = getattr(item.default, "factory", None)
    value = unstructure(factory() if factory else item.default)
    if isinstance(value, dict) and value:
        return "see below"
    if value is None or value in ((), [], {}, ""):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{', '.join(map(str, value))}`" if isinstance(value, (list, tuple)) else f"`{value}`"
