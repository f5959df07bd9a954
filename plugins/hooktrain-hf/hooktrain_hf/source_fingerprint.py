"""Fingerprints of sources, from their files' contents and names or the hub's revision, without loading them."""

from __future__ import annotations

import hashlib
import json
import os
from glob import glob
from pathlib import Path

from hooktrain_hf.file_digests import file_digests
from hooktrain_hf.source import HFSourceConfig, files_of, name_and_split

__all__ = ["fingerprint"]


def fingerprint(config: HFSourceConfig) -> str | None:
    """Return a text that differs where the examples of a source may differ.

    Returns:
        A digest of the files' contents and of their names relative to the source's folder, or the revision of a hub
        data set. None where a file cannot be read, or the revision is only known when the data set is loaded.

    Raises:
        DataError: there is no such file, or it changes while it is read.
    """
    name, split = name_and_split(config)
    root, files = _files(config, Path(name).expanduser(), name)
    if not files:
        return _hub_revision(name, split)
    relative = {os.path.relpath(file, root): file for file in files}
    try:
        digests = file_digests(root, relative)
    except OSError:
        return None
    made = hashlib.blake2b(json.dumps(list(digests.items())).encode(), digest_size=16)
    return f"{made.hexdigest()} {split}"


def _files(config: HFSourceConfig, path: Path, name: str) -> tuple[Path, list[Path]]:
    """Return the folder of a source and its files, in order; none for a data set on the hub."""
    if not path.is_dir():
        found = [Path(os.path.abspath(file)) for file in files_of(name, path)]
        return Path(os.path.commonpath([file.parent for file in found])) if found else path, found
    if not config.data_files:
        return path, _below(path)
    found = []
    for pattern in config.data_files:
        found += [Path(file) for file in sorted(glob(str(path / pattern), recursive=True))] or [path / pattern]
    return path, found


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
