"""Discovery of plugins: entry points of installed distributions, and modules that are named."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hooktrain.errors import PluginError, did_you_mean
from hooktrain.plugin.records import PluginRecord

__all__ = ["GROUP", "aside", "import_named", "installed", "own_version", "record_of"]

GROUP = "hooktrain"
"""The entry-point group that plugins are found through."""


def installed() -> tuple[dict[str, importlib.metadata.EntryPoint], dict[str, str]]:
    """The installed plugins in the order of their names, whatever the file system's; and why a name is no good, as two
    distributions have it.
    """
    found: dict[str, importlib.metadata.EntryPoint] = {}
    twins: dict[str, str] = {}
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        twin = found.setdefault(point.name, point)
        if twin is point:
            continue
        names = _facts(twin).get("name"), _facts(point).get("name")
        if (names[0], twin.value) != (names[1], point.value):
            twins[point.name] = (
                f"two installed distributions, {names[0] or 'unknown'} and {names[1] or 'unknown'}, both register a"
                f" plugin named '{point.name}'; uninstall one of them"
            )
    return found, twins


def record_of(point: importlib.metadata.EntryPoint) -> PluginRecord:
    """Return a record from the metadata of a plugin's distribution, which may be damaged or missing."""
    facts = _facts(point)
    return PluginRecord(
        name=point.name,
        distribution=facts.get("name") or "unknown",
        version=facts.get("version", ""),
        summary=facts.get("summary", ""),
        author=facts.get("author") or facts.get("author-email", ""),
    )


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Redirect what a plugin prints while it is imported to the standard error; a program may read the other."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def import_named(name: str, known: Iterable[str]) -> Any:
    """Import ``package.module``, ``package.module:Class`` or ``folder/file.py``.

    A module in the current folder is found, as under `python -m`.

    Args:
        name: what a recipe or ``-p`` says.
        known: installed plugins, one of which may have been meant.

    Raises:
        PluginError: it cannot be imported, or is not there.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with aside():
            plugin: Any = _of_file(module) if module.endswith(".py") else importlib.import_module(module)
        for step in filter(None, attribute.split(".")):
            plugin = getattr(plugin, step)
    except (Exception, SystemExit) as problem:
        if not (isinstance(problem, ModuleNotFoundError) and module.startswith(problem.name or "?")):
            raise PluginError(
                f"plugins: the module '{name}' cannot be imported ({type(problem).__name__}: {problem}); fix it,"
                " or remove it"
            ) from problem
        raise PluginError(
            f"plugins: '{name}' is neither an installed plugin nor a module that can be found"
            f"{did_you_mean(name, known)}; installed are {', '.join(known) or 'none'}; modules are looked"
            " for in the current folder and on PYTHONPATH"
        ) from problem
    return plugin


def _of_file(name: str) -> Any:
    """Import a file by its path, under its own name, so that other processes can import it as well."""
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"there is no such file as {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.import_module(path.stem)
    found = Path(str(module.__file__)).absolute()
    if found.resolve() != path.resolve():
        raise ImportError(f"the name {path.stem} is that of another module, {found}; rename the file")
    return module


def own_version() -> str:
    """The version of hooktrain itself."""
    try:
        return importlib.metadata.version("hooktrain")
    except importlib.metadata.PackageNotFoundError:
        return "0 (not installed)"


def _facts(point: importlib.metadata.EntryPoint) -> dict[str, str]:
    """The fields of a distribution's metadata by their names in small letters; reading them takes a millisecond."""
    try:
        metadata: Any = point.dist.metadata if point.dist else {}
        return {name.lower(): str(text) for name, text in metadata.items()}
    except Exception:
        return {}
