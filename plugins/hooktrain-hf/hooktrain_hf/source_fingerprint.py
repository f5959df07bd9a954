"""Fingerprints of sources, from their files' contents or the hub's revision, without loading them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from hooktrain_hf.source import HFSourceConfig, files_of, name_and_split

__all__ = ["fingerprint"]

_READ_WHOLE = 64 * 2**20
"""Bytes up to which a file is identified by its content; larger ones by path, size and time of change."""


def fingerprint(config: HFSourceConfig) -> str | None:
    """Return a text that differs where the examples of a source may differ.

    Returns:
        None where the revision of a hub data set is only known when it is loaded.

    Raises:
        DataError: there is no such file.
    """
    name, split = name_and_split(config)
    path = Path(name).expanduser()
    if path.is_dir():
        chosen = [path / file for file in config.data_files]
        files = chosen or sorted(file for file in path.rglob("*") if file.is_file() and ".git" not in file.parts)
    else:
        files = [Path(file) for file in files_of(name, path)]
    if not files:
        return _hub_revision(name, split)
    return _of_files(files) + f" {split}"


def _of_files(files: Iterable[Path]) -> str:
    made = hashlib.blake2b(digest_size=16)
    for file in files:
        made.update(f"{file.name}\0".encode())
        try:
            found = file.stat()
            if found.st_size <= _READ_WHOLE:
                made.update(file.read_bytes())
            else:
                made.update(f"{file.resolve()} {found.st_size} {found.st_mtime_ns}".encode())
        except OSError:
            made.update(b"unreadable")  # loading it raises the error
    return made.hexdigest()


def _hub_revision(name: str, split: str) -> str | None:
    """Return the present commit of a data set on the hub; None where the hub cannot be reached."""
    from huggingface_hub import HfApi

    if "://" in name:
        return None
    try:
        revision = HfApi().dataset_info(name, timeout=5).sha
    except Exception:  # offline, unknown, gated: loading raises a better error
        return None
    return f"{name} {revision} {split}" if revision else None
