"""Discovery of plugins: entry points of installed distributions, and modules that are named."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator
from email.parser import HeaderParser
from functools import lru_cache
from pathlib import Path
from typing import Any

from hooktrain.errors import PluginError, described, did_you_mean
from hooktrain.plugin.records import PluginRecord

__all__ = [
    "GROUP",
    "UNTRUSTED",
    "aside",
    "import_named",
    "installed",
    "own_version",
    "record_of",
    "require_trusted",
]

GROUP = "hooktrain"
"""The entry-point group that plugins are found through."""
UNTRUSTED = "HOOKTRAIN_UNTRUSTED"
"""Environment variable that ``--untrusted`` sets, so that ranks have it too; with the names that ``-p`` gives."""


def installed() -> tuple[dict[str, importlib.metadata.EntryPoint], dict[str, str]]:
    """The installed plugins in the order of their names, whatever the file system's; and why a name is no good, as two
    distributions have it.
    """
    found: dict[str, importlib.metadata.EntryPoint] = {}
    twins: dict[str, str] = {}
    for point in _entry_points(tuple(map(_identity, sys.path))):
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


@lru_cache(maxsize=1)  # reading them takes longer than a small run
def _entry_points(folders: tuple[tuple[int, ...], ...]) -> tuple[importlib.metadata.EntryPoint, ...]:
    """The entry points of plugins, read again when a folder of ``sys.path`` has changed, as by an installation."""
    return tuple(sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)))


def _identity(folder: str) -> tuple[int, ...]:
    try:
        found = os.stat(folder or ".")
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns


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


def require_trusted(module: str, key: str) -> None:
    """Refuse a module that a recipe names, where the recipe is not the user's own and the module is not installed.

    Without ``--untrusted`` it does nothing: what is imported runs, and a recipe may name any module.

    Args:
        module: such as ``package.module``.
        key: of the recipe, for the message.

    Raises:
        PluginError: with ``--untrusted``, when no installed distribution has the module, or the current folder does.
    """
    untrusted, *named = os.environ.get(UNTRUSTED, "").split(",")
    if not untrusted or any(f"{module}.".startswith(f"{name.partition(':')[0]}.") for name in named):
        return
    top = module.partition(".")[0]
    here = any(os.path.exists(os.path.join(os.getcwd(), name)) for name in (top, f"{top}.py"))
    if here or top not in importlib.metadata.packages_distributions():
        raise PluginError(
            f"{key}: given '{module}', a module {'of the current folder' if here else 'that no installed package has'},"
            " in a recipe that is not yours (--untrusted), expected an installed plugin or package; read the module,"
            f" and load it with -p {module}, or leave --untrusted out"
        )


def import_named(name: str, known: Iterable[str], asked: bool = True) -> Any:
    """Import ``package.module``, ``package.module:Class`` or ``folder/file.py``.

    A module in the current folder is found, as under `python -m`.

    Args:
        name: what a recipe or ``-p`` says.
        known: installed plugins, one of which may have been meant.
        asked: whether the user has named it, and not the recipe alone.

    Raises:
        PluginError: it cannot be imported, or is not there, or must not be, see :func:`require_trusted`.
    """
    module, _, attribute = name.partition(":")
    if not asked:
        require_trusted(module, "plugins.load")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with aside():
            plugin: Any = _of_file(module) if module.endswith(".py") else importlib.import_module(module)
        for step in filter(None, attribute.split(".")):
            plugin = getattr(plugin, step)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        if not (isinstance(problem, ModuleNotFoundError) and module.startswith(problem.name or "?")):
            raise PluginError(
                f"plugins: the module '{name}' cannot be imported ({described(problem)}); fix it, or remove it"
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
    """The fields of a distribution's metadata by their names in small letters."""
    try:
        texts = (point.dist.read_text(name) for name in ("METADATA", "PKG-INFO")) if point.dist else ()
        return _headers(next(filter(None, texts), ""))
    except Exception:
        return {}


@lru_cache(maxsize=256)
def _headers(text: str) -> dict[str, str]:
    return {name.lower(): str(value) for name, value in HeaderParser().parsestr(text).items()}
