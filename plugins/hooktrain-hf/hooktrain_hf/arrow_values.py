"""Rows of Arrow tables as Python values: names of class labels, text of time stamps, and decoded JSON columns."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

__all__ = ["example_converter", "row_converter"]

_Convert = Callable[[Any], Any]


def row_converter(schema: pyarrow.Schema) -> Callable[[Any], list[dict[str, Any]]]:
    """Return a function from tables or batches of a schema to rows.

    Class labels become their names and columns of JSON their values, as the schema's metadata of ``datasets`` says.
    Time stamps and dates become ISO 8601 text. Pictures and sound stay the bytes or paths that they are.
    """
    features = _features(schema)
    converters = [_converter(entry.type, features.get(entry.name)) for entry in schema]
    names = list(schema.names)

    def convert(table: Any) -> list[dict[str, Any]]:
        columns: list[Iterable[Any]] = []
        for column, one in zip(table.columns, converters, strict=True):
            values = column.to_pylist(maps_as_pydicts="strict")
            columns.append(values if one is None else map(one, values))
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    return convert


def example_converter(schema: pyarrow.Schema) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """Return the same for examples that ``datasets`` has decoded, one by one; None where they stay as they are."""
    features = _features(schema)
    found = {entry.name: _converter(entry.type, features.get(entry.name), decoded=True) for entry in schema}
    changed = {name: one for name, one in found.items() if one is not None}
    return (lambda example: {name: one(example[name]) for name, one in changed.items()}) if changed else None


def _features(schema: pyarrow.Schema) -> Mapping[str, Any]:
    """Return the features that ``datasets`` has written into a schema."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _converter(kind: Any, feature: Any, decoded: bool = False) -> _Convert | None:
    """Return the conversion of a column's values, None where they stay as they are."""
    from pyarrow import types

    named = feature.get("_type") if isinstance(feature, Mapping) else None
    if named == "ClassLabel" and feature.get("names"):
        names = list(feature["names"])
        return lambda value: names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if named == "Json" and decoded:
        return None
    if named == "Json":
        return lambda value: json.loads(value) if isinstance(value, str) else value
    if types.is_temporal(kind) and not types.is_duration(kind):
        return lambda value: value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else value
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = feature[0] if isinstance(feature, list) and feature else feature
        inner = inner.get("feature") if named in ("Sequence", "List", "LargeList") else inner
        one = _converter(kind.value_type, inner, decoded)
        return None if one is None else lambda value: value and [one(entry) for entry in value]
    if types.is_map(kind):
        of_items = _converter(kind.item_type, None, decoded)
        return None if of_items is None else lambda value: value and {key: of_items(v) for key, v in value.items()}
    if types.is_struct(kind):
        return _of_struct(kind, feature, named, decoded)
    return None


def _of_struct(kind: Any, feature: Any, named: Any, decoded: bool) -> _Convert | None:
    fields = feature if isinstance(feature, Mapping) else {}
    if named == "Sequence" and isinstance(feature["feature"], Mapping):  # a list of mappings is stored as this
        fields = {name: [inner] for name, inner in feature["feature"].items()}
    inner = {entry.name: _converter(entry.type, fields.get(entry.name), decoded) for entry in kind}
    changed = {name: one for name, one in inner.items() if one is not None}
    if not changed:
        return None
    return lambda value: value and {name: changed[name](v) if name in changed else v for name, v in value.items()}
