"""Folders, GGUF files and hub names of models, and errors about those that cannot be read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from hooktrain import ModelError

__all__ = ["EXPECTED", "Location", "cannot_load", "first_line", "looks_like_path", "resolve_location"]

_HUB_NAME = re.compile(r"[\w.\-]+(/[\w.\-]+)?")
EXPECTED = (
    "expected a folder with a config.json, a .gguf file, or a name on the Hugging Face hub such as"
    " HuggingFaceTB/SmolLM2-135M-Instruct"
)


class Location(NamedTuple):
    """Place of a pretrained model or tokenizer.

    Attributes:
        name: a local folder or a hub name, as ``from_pretrained`` takes it.
        gguf_file: name of a GGUF file in it, or None.
        local: whether ``name`` is a folder on this machine.
        revision: branch, tag or commit of a hub repository, or None.
    """

    name: str
    gguf_file: str | None
    local: bool
    revision: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of ``from_pretrained`` that say which of its files are meant."""
        given = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {name: value for name, value in given.items() if value}


def looks_like_path(name: str) -> bool:
    """Return whether ``name`` can only be a path on this machine, for which the network must not be used."""
    if name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/"):
        return True
    parts = Path(name).parts
    return len(parts) > 1 and Path(parts[0]).is_dir()


def resolve_location(name_or_path: str, gguf_file: str | None, key: str, revision: str | None = None) -> Location:
    """Find out whether ``name_or_path`` is a folder, a file or a hub name, without the network.

    Args:
        name_or_path: a folder, a ``.gguf`` file, or a hub name.
        gguf_file: a GGUF file inside it.
        key: path in the recipe, for errors.
        revision: branch, tag or commit of a hub repository.

    Raises:
        ModelError: the path does not exist, lacks a file of a model, or is neither a path nor a hub name; or it is a
            path, which has no revisions.
    """
    path = Path(name_or_path).expanduser()
    if revision is not None and path.exists():
        raise ModelError(
            f"{key.rpartition('.')[0]}.revision: given '{revision}' with the path '{name_or_path}', expected a name on"
            " the hub; remove one of them"
        )
    if path.is_file() and path.suffix == ".gguf" and gguf_file in (None, path.name):
        return Location(str(path.parent), path.name, local=True)
    if path.is_dir():
        if gguf_file is not None and not (path / gguf_file).is_file():
            there = ", ".join(sorted(file.name for file in path.glob("*.gguf"))) or "none"
            gguf_key = f"{key.rpartition('.')[0]}.gguf_file"
            raise ModelError(
                f"{gguf_key}: given '{gguf_file}', which is not in '{name_or_path}' (GGUF files there: {there});"
                " expected the name of a file in that folder; correct the name or remove the key"
            )
        return Location(str(path), gguf_file, local=True)
    if path.is_file():
        raise ModelError(f"{key}: given '{name_or_path}', which is a file; {EXPECTED}; give the folder that it is in")
    if looks_like_path(name_or_path):
        raise ModelError(f"{key}: given '{name_or_path}', which does not exist; {EXPECTED}; correct the path")
    if not _HUB_NAME.fullmatch(name_or_path):
        raise ModelError(
            f"{key}: given '{name_or_path}', which is neither a folder nor a possible hub name; {EXPECTED};"
            " correct the name"
        )
    return Location(name_or_path, gguf_file, local=False, revision=revision)


def cannot_load(location: Location, key: str, what: str, error: BaseException) -> ModelError:
    """Return the error for a ``what`` that ``from_pretrained`` could not load; the caller raises it from ``error``."""
    if location.local:
        file = f" with gguf_file '{location.gguf_file}'" if location.gguf_file else ""
        return ModelError(
            f"{key}: given '{location.name}'{file}, whose {what} cannot be loaded ({first_line(error)}); {EXPECTED};"
            " check that the folder is complete and that this version of transformers supports the model"
        )
    at = f" at revision '{location.revision}'" if location.revision else ""
    return ModelError(
        f"{key}: given '{location.name}'{at}, which is no folder on this machine and whose {what} cannot be loaded from"
        f" the hub ({first_line(error)}); {EXPECTED}; check the spelling, the network and your access to it, or give"
        f" a local folder{_cache_advice()}"
    )


def _cache_advice() -> str:
    """Return what to do about a Hugging Face cache that cannot be written, or nothing where it can be."""
    from huggingface_hub.constants import HF_HOME

    folder = Path(HF_HOME)
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if os.access(existing, os.W_OK | os.X_OK):
        return ""
    return f"; the Hugging Face cache '{folder}' cannot be written: set HF_HOME to a folder that can be"


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its text, short enough for another error's text."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = text if len(text) <= 160 else text[:157] + "..."
    return f"{type(error).__name__}: {text.rstrip('.')}" if text != type(error).__name__ else text
