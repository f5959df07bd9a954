"""The source ``transcripts``, and the format ``transcript`` for the examples of any source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from glob import glob
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from hooktrain import DataError, PluginInfo, did_you_mean, field, hookimpl

from hooktrain_transcripts.reading import COLUMN, split_dialogs, to_messages

if TYPE_CHECKING:
    from hooktrain_sft.data.formats import Format

__all__ = ["TranscriptsConfig"]

hooktrain_plugin = PluginInfo(api=">=2.0,<3", requires=["sft"], changes_gradients=True)  # other examples


@attrs.frozen(kw_only=True)
class TranscriptsConfig:
    """Dialogs from files, or from a collection that comes with ``hooktrain-transcripts``."""

    shorthand: ClassVar[str] = "path"

    path: str = field(default="")
    """A file, or a pattern such as ``dialogs/*.txt``."""
    collection: str = field(default="")
    """``small_talk`` or ``arithmetic``."""
    name: str = field(default="transcripts")
    """Name of the source in reports, and of the set where it is evaluated."""

    def __attrs_post_init__(self) -> None:
        if bool(self.path) == bool(self.collection):
            raise ValueError("expected either a path or a collection; give one of them")


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"source": {"transcripts": TranscriptsConfig}}


@hookimpl
def load_source(config: Any) -> list[dict[str, str]] | None:
    if not isinstance(config, TranscriptsConfig):
        return None
    return [{COLUMN: dialog} for text in _texts(config) for dialog in split_dialogs(text)]


@hookimpl
def fingerprint_source(config: Any) -> str | None:
    if not isinstance(config, TranscriptsConfig):
        return None
    return hashlib.sha256("\0".join(_texts(config)).encode()).hexdigest()


@hookimpl
def estimate_examples(config: Any) -> int | None:
    if not isinstance(config, TranscriptsConfig):
        return None
    return sum(len(split_dialogs(text)) for text in _texts(config))


@hookimpl
def register_formats() -> Mapping[str, Format]:
    from hooktrain_sft.data.formats import Format

    return {"transcript": Format("transcript", f"'{COLUMN}'", _recognise, to_messages)}


def _recognise(columns: Sequence[str], row: Mapping[str, Any]) -> str | None:
    return f"the column '{COLUMN}'" if COLUMN in columns else None


def _texts(config: TranscriptsConfig) -> list[str]:
    if config.collection:
        return [_collection(config.collection)]
    found = sorted(glob(str(Path(config.path).expanduser())))
    if not found:
        raise DataError(f"source of type transcripts: there is no file '{config.path}'; correct path")
    return [Path(path).read_text(encoding="utf-8") for path in found]


def _collection(name: str) -> str:
    folder = resources.files("hooktrain_transcripts") / "collections"
    names = sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir())
    if name not in names:
        raise DataError(
            f"source of type transcripts: given the collection '{name}'{did_you_mean(name, names)}, expected one of"
            f" {', '.join(names)}"
        )
    return (folder / f"{name}.txt").read_text(encoding="utf-8")
