"""Atomic replacement of an export's folder: at any time either the old or the new one is there."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hooktrain import CheckpointError

__all__ = ["check_target", "delete_temporary", "exports_in", "replace_folder", "temporary_folder"]

_STEP = re.compile(r"best|step-\d+")
_CONFIGS = ("config.json", "adapter_config.json")
_OF_AN_EXPORT = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|adapter_config\.json|(adapter_)?model.*\.safetensors(\.index\.json)?|merges\.txt|(tokenizer|spiece)\.model|chat_template\.jinja|additional_chat_templates"
)


def check_target(folder: Path, where: str) -> None:
    """Raise CheckpointError where an export cannot or must not be written to ``folder``.

    Args:
        folder: the export's folder; it need not exist.
        where: beginning of the message.

    Raises:
        CheckpointError: it is a file, cannot be written, or contains files that are not an export's.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(
            f"{where}: given output_dir '{folder}', which is a file; expected a folder, or an unused name; change it"
        )
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    # replacing the folder writes to its parent
    for place in {existing, folder.parent} if folder.exists() else {existing}:
        if not os.access(place, os.W_OK | os.X_OK):
            raise CheckpointError(
                f"{where}: given output_dir '{folder}', but this user may not write to '{place}'; expected a writable"
                " folder; change output_dir or the permissions"
            )
    if not folder.is_dir() or any((folder / name).is_file() for name in _CONFIGS):
        return
    strange = sorted(entry.name for entry in folder.iterdir() if not _STEP.fullmatch(entry.name))
    strange = [name for name in strange if not name.startswith(".")]
    if strange:
        listed = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        raise CheckpointError(
            f"{where}: given output_dir '{folder}', which contains files that are not an export's ({listed}); expected"
            " a new or empty folder, or an earlier export; change output_dir or move those files"
        )


def exports_in(folder: Path) -> list[Path]:
    """Return the exports in an export's folder: itself, and earlier saves in it, the newest first."""
    try:
        steps = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)]
    except OSError:
        return []
    found = [folder, *sorted(steps, key=lambda path: -int(path.name[5:] or 0))]
    return [path for path in found if any((path / name).is_file() for name in _CONFIGS)]


def delete_temporary(folder: Path) -> None:
    """Delete what interrupted exports to a folder and to those in it have left, and finish their renames."""
    for parent, name in ((folder.parent, re.escape(folder.name)), (folder, _STEP.pattern)):
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            if found := re.fullmatch(rf"\.({name})\.(writing|replaced)", path.name):
                _finish(parent / found[1])
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Make a folder next to ``target``, on the same file system, and delete it afterwards if it is still there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _finish(target)
    folder = target.parent / f".{target.name}.writing"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(folder: Path, target: Path) -> None:
    """Flush ``folder`` to the disk and rename it to ``target``; other files in ``target`` are kept.

    Raises:
        OSError: the file system refuses; ``target`` is then unchanged.
    """
    for path in (*sorted(folder.rglob("*")), folder):
        _sync(path)
    if not target.exists():
        os.rename(folder, target)
    else:
        old = _old(target)
        os.rename(folder, old)  # a killed run's files under this name are moved back, see _finish
        if not _swap_names(old, target):  # no such call on this system: for an instant there is only ``old``
            os.rename(old, folder)
            os.rename(target, old)
            os.rename(folder, target)
        _finish(target)
    _sync(target.parent)


def _old(target: Path) -> Path:
    return target.parent / f".{target.name}.replaced"


def _swap_names(left: Path, right: Path) -> bool:
    """Exchange two names by Linux' renameat2; return False where the system does not support it."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd, exchange = -100, 2
    return bool(rename(at_cwd, os.fsencode(left), at_cwd, os.fsencode(right), exchange) == 0)


def _finish(target: Path) -> None:
    """Move files that are not the replaced export's (earlier saves, a user's notes) back; delete the others.

    It is also called before the next save, in case a run was killed in between.
    """
    old = _old(target)
    if not old.is_dir():
        return
    if not target.exists():  # killed between the two renames of the fallback
        os.rename(old, target)
        return
    for entry in sorted(old.iterdir()):
        if not _OF_AN_EXPORT.fullmatch(entry.name) and not (target / entry.name).exists():
            os.rename(entry, target / entry.name)
    shutil.rmtree(old)


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
