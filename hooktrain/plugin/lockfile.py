"""Lock files: the plugins of a run with their versions, files and order, which a recipe can require."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain.errors import PluginError
from hooktrain.plugin.discovery import own_version
from hooktrain.plugin.info import API_VERSION

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = ["lock_differences", "require_lock", "write_lock"]


def write_lock(host: PluginHost, path: Path) -> None:
    """Write down which plugins are active, of which version, with which files and in which order.

    Raises:
        PluginError: when the file cannot be written.
    """
    facts = {"api": API_VERSION, "hooktrain": own_version(), "plugins": _locked(host)}
    try:
        path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as problem:
        raise PluginError(
            f"--lock {path}: cannot be written ({problem.strerror}); give a file in a folder that is there"
        ) from problem


def require_lock(host: PluginHost) -> None:
    """Refuse a run whose plugins are not those of the lock that ``plugins.lock`` names, if any.

    Raises:
        PluginError: naming every difference; or the file is no lock.
    """
    if host.config.lock is None:
        return
    path = host.config.lock.expanduser()
    looked = "" if path.is_absolute() else f" in the current folder, {Path.cwd()}"
    try:
        locked = json.loads(path.read_text(encoding="utf-8"))["plugins"]
        found = lock_differences(locked, _locked(host))
    except FileNotFoundError:
        raise PluginError(
            f"plugins.lock: there is no file {path}{looked}; write it with `hooktrain plan RECIPE --lock {path}`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise PluginError(
            f"plugins.lock: {path} is no lock ({type(problem).__name__}: {problem}); write it with"
            f" `hooktrain plan RECIPE --lock {path}`"
        ) from problem
    if found:
        raise PluginError(
            f"plugins.lock: the plugins are not those of {path}; install what it says, or, where this is meant, write"
            f" it anew with `hooktrain plan RECIPE --lock {path}`\n" + "\n".join(f"  - {line}" for line in found)
        )


def lock_differences(locked: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the differences between the active plugins and those of a lock, a line each."""
    were, are = ({record["name"]: record for record in side} for side in (locked, now))
    lines = [f"{_who(record)} is in the lock and is not active" for name, record in were.items() if name not in are]
    told = set()
    for name, record in are.items():
        before = were.get(name)
        if before is None:
            lines.append(f"{_who(record)} is active and is not in the lock")
        elif _who(before) != _who(record):
            lines.append(f"{_who(record)} is active, and the lock has {_who(before)}")
        elif before["digest"] != record["digest"] and (record["distribution"], record["digest"]) not in told:
            told.add((record["distribution"], record["digest"]))  # once for the built-in ones, which share their files
            lines.append(f"{_who(record)} has other files than the lock says, in the same version")
    # the last registered is called first, and a recipe's order is that of the calls
    orders = [[name for name in reversed(side) if name in were and name in are] for side in (were, are)]
    if orders[0] != orders[1]:
        lines.append(f"the order of calls was {', '.join(orders[0])}, and is {', '.join(orders[1])}")
    return lines


def _locked(host: PluginHost) -> list[dict[str, Any]]:
    keys = ("name", "distribution", "version", "digest")
    return [{key: record[key] for key in keys} for record in host.manifest()]


def _who(record: Mapping[str, Any]) -> str:
    return f"'{record['name']}' ({record['distribution']} {record['version']})".replace(" )", ")")
