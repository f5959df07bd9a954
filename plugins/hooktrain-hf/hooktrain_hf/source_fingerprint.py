"""Fingerprints of sources, from their files' contents and names or the hub's revision, without loading them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from hooktrain_hf.file_digests import file_digests
from hooktrain_hf.local_files import splits_of
from hooktrain_hf.source import HFSourceConfig, name_and_split

__all__ = ["fingerprint"]


_EDGE = 1 << 16
"""Bytes at both ends of a file of a stream by which it is known, with its size."""


def fingerprint(config: HFSourceConfig, quick: bool = False) -> str | None:
    """Return a text that differs where the examples of a source may differ.

    Args:
        config: the source. Of the files of a stream only the sizes and both ends are compared.
        quick: whether to return None where a large file would have to be read.

    Returns:
        A digest of the files' contents and of their names relative to the source's folder, or the revision of a hub
        data set. None where a file cannot be read, or the revision is only known when the data set is loaded.

    Raises:
        DataError: there is no such file, or it changes while it is read.
    """
    name, split = name_and_split(config)
    path = Path(name).expanduser()
    splits = splits_of(name, path, config.data_files, config.subset)
    if not splits and path.is_dir():
        splits = {"": _below(path)}  # a saved data set
    files = [Path(os.path.abspath(file)) for found in splits.values() for file in found]
    if not files:
        return _hub_revision(name, split, config.revision)
    root = path.absolute() if path.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    names = {one: [os.path.relpath(file, root) for file in found] for one, found in splits.items()}
    try:
        by_name = {os.path.relpath(file, root): file for file in files}
        digests = {n: _edges(f) for n, f in by_name.items()} if config.streaming else file_digests(root, by_name, quick)
    except OSError:
        return None
    if digests is None:
        return None
    made = hashlib.blake2b(json.dumps([names, list(digests.items())]).encode(), digest_size=16)
    return f"{made.hexdigest()} {split}"


def _edges(file: Path) -> str:
    """Return a digest of the size of a file, its beginning and its end."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        made = hashlib.blake2b(opened.read(_EDGE), digest_size=16)
        opened.seek(max(0, size - _EDGE))
        made.update(opened.read(_EDGE))
    return f"{made.hexdigest()} {size}"


def _below(folder: Path) -> list[Path]:
    """Return the files of a folder and of the folders in it, links followed, without hidden ones."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        above = os.path.realpath(parent) + os.sep
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not above.startswith(os.path.realpath(os.path.join(parent, name)) + os.sep)
        )
        found += [Path(parent, name) for name in sorted(files) if not name.startswith(".")]
    return [file for file in found if file.is_file()]


def _hub_revision(name: str, split: str, at: str | None) -> str | None:
    """Return the present commit of a data set on the hub, or of a revision; None where it cannot be reached."""
    from huggingface_hub import HfApi

    if "://" in name:
        return None
    try:
        revision = HfApi().dataset_info(name, revision=at, timeout=5).sha
    except Exception:  # offline, unknown, gated: loading raises a better error
        return None
    return f"{name} {revision} {split}" if revision else None
