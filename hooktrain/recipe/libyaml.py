"""PyYAML's safe loader and dumper in C where PyYAML has libyaml, which take a tenth of the time and do the same."""

from __future__ import annotations

from typing import Any

import yaml

try:
    from yaml import CSafeDumper, CSafeLoader

    _Dumper: Any = CSafeDumper
    Loader: Any = CSafeLoader
except ImportError:  # PyYAML without libyaml
    _Dumper, Loader = yaml.SafeDumper, yaml.SafeLoader

__all__ = ["Loader", "dump", "dump_line", "load"]


def load(text: str) -> Any:
    """Read YAML that this program wrote; a recipe of a user is read by :mod:`hooktrain.recipe.yaml_reader`."""
    return yaml.load(text, Loader=Loader)


def dump(value: Any) -> str:
    """Write a value as YAML over several lines, in its own order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def dump_line(value: Any) -> str:
    """Write a value as YAML on one line."""
    text = str(
        yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    )
    return text.removesuffix("\n").removesuffix("\n...").strip()
