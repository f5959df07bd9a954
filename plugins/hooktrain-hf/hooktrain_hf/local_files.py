"""Files of a local source: which of a path, a glob or a folder are read, and the splits that their names tell."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hooktrain import DataError, did_you_mean
from hooktrain_hf.location import looks_like_path

__all__ = ["COMPRESSED", "EXPECTED", "SPLITS", "files_of", "is_saved_data_set", "kind_of", "not_read", "splits_of"]

_KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Endings of compressed files, after the ending of what they hold."""
EXPECTED = (
    f"expected a file ({', '.join(_KINDS)}, compressed with {', '.join(COMPRESSED)} or not), a glob of such files, a"
    " folder, or a data set's name on the Hugging Face hub such as HuggingFaceH4/ultrachat_200k"
)

_WITHOUT_ROWS = {
    *(".md", ".rst", ".py", ".ipynb", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".lock", ".css", ".js"),
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".svg", ".tif", ".tiff", ".ico"),
    *(".mp3", ".wav", ".flac", ".ogg", ".m4a", ".mp4", ".avi", ".mov", ".mkv", ".webm", ".sha256", ".md5", ".crc"),
}
"""Endings of files in a folder of data that hold no rows."""
_ABOUT = {
    *("readme", "license", "licence", "notice", "changelog", "authors", "citation", "contributing", "requirements"),
    *("makefile", "dockerfile", "_success", "_metadata", "_common_metadata"),
    *("dataset_info", "dataset_infos", "croissant"),
}
"""Names, without their endings, of files in a folder of data that are about it."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}
"""Splits by the words for them in names of files."""
_SHARD = re.compile(r"(?P<name>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")


def kind_of(path: Path) -> str | None:
    """Return the kind of a data file by its ending, in any case; None for other files."""
    return _KINDS.get(_ending(path))


def _ending(path: Path) -> str:
    """Return the ending of a file in lower case, the one before that of a compressed file."""
    endings = [ending.lower() for ending in path.suffixes] or [""]
    return endings[-2] if endings[-1] in COMPRESSED and len(endings) > 1 else endings[-1]


def is_saved_data_set(path: Path) -> bool:
    """Return whether ``save_to_disk`` of ``datasets`` wrote a folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def files_of(name: str, path: Path) -> list[str]:
    """Return the files that are read for ``name``, sorted; empty when it can only be a hub name.

    Raises:
        DataError: it is a path or a glob without data files, or with files of several kinds.
    """
    return [str(file) for files in splits_of(name, path).values() for file in files]


def splits_of(
    name: str, path: Path, data_files: Sequence[str] = (), subset: str | None = None
) -> Mapping[str, list[Path]]:
    """Return the data files of a path, a glob or a folder by their split.

    All files are of the split ``train``, except in a folder whose files are named after splits or whose README.md lists
    its files for ``datasets``.

    Args:
        name: as in the recipe, for errors.
        path: the same with the home folder filled in.
        data_files: paths and globs below the folder to read instead of all its files.
        subset: name of one of the configurations in the folder's README.md.

    Returns:
        The files; empty where ``name`` can only be a hub name, and for a saved data set.

    Raises:
        DataError: there is no such file, or it is not clear which ones to read.
    """
    if path.is_dir():
        if is_saved_data_set(path):
            return {}
        splits = _of_folder(name, path, data_files, subset)
    else:
        found = _of_path(name, path)
        splits = {"train": found} if found else {}
        if splits and (data_files or subset):
            given = "data_files" if data_files else "subset"
            raise DataError(f"data.sources: given '{name}' with {given}, which is for folders and hub names; remove it")
    for files in splits.values():
        _check_kinds(name, path, files)
    return splits


def _of_path(name: str, path: Path) -> list[Path]:
    """Return a file or the files of a glob; none where ``name`` can only be a hub name."""
    if path.is_file():
        return [path]
    if "://" in name:
        return []
    if path.is_symlink():
        raise DataError(
            f"data.sources: given '{name}', which is a symbolic link to '{os.readlink(path)}', where there is no file;"
            " correct the link"
        )
    if path.exists():
        raise DataError(f"data.sources: given '{name}', which is neither a file nor a folder; {EXPECTED}; correct it")
    is_glob = any(mark in name for mark in "*?[")
    found = _globbed(path) if is_glob else []
    if found or not (is_glob or looks_like_path(name) or kind_of(path)):
        return found
    near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() and not is_glob else []
    what = "matches no file" if is_glob else "does not exist"
    raise DataError(
        f"data.sources: given '{name}', which {what}{did_you_mean(path.name, near)}; {EXPECTED}; correct the path"
    )


def _globbed(pattern: Path) -> list[Path]:
    """Return the files that match; the folders at its beginning that exist are taken as they are written."""
    parts = pattern.parts
    count = next((n for n in range(len(parts) - 1, 0, -1) if Path(*parts[:n]).is_dir()), 0)
    escaped = os.path.join(glob.escape(str(Path(*parts[:count]))), *parts[count:]) if count else str(pattern)
    found = (Path(file) for file in glob.glob(escaped, recursive=True))
    return sorted(file for file in found if not file.is_dir())


# ---------------------------------------------------------------------------------------------------------- folders


def _of_folder(name: str, folder: Path, data_files: Sequence[str], subset: str | None) -> dict[str, list[Path]]:
    if data_files:
        return {"train": _chosen(name, folder, data_files)}
    configured = _of_card(name, folder, subset)
    if configured is not None and not any(configured.values()):
        raise DataError(
            f"data.sources: given '{name}', a folder without the files that its README.md lists; download them, or name"
            " others with `data_files`"
        )
    if configured is not None:
        return configured
    if subset is not None:
        raise DataError(f"data.sources: given '{name}' with subset '{subset}', but no README.md lists it; remove it")
    everything = [file for file in _walk(folder) if not _is_about(file)]
    found = [file for file in everything if kind_of(file)]
    other = [file for file in everything if not kind_of(file)]
    if other:
        raise DataError(
            f"data.sources: given '{name}', a folder with {_listed(folder, other)}, which cannot be read;"
            f" {EXPECTED}; {_remedy(folder, found) if found else 'convert them'}"
        )
    if not found:
        raise DataError(f"data.sources: given '{name}', a folder without data files; {EXPECTED}; correct the path")
    return _by_split(name, folder, found)


def not_read(folder: Path) -> list[str]:
    """Return a remark about the files in a folder of data that are not read, as their names say that they hold none."""
    if not folder.is_dir() or _configs(folder / "README.md"):
        return []
    found = [file for file in _walk(folder) if _is_about(file)]
    return [f"files not read: {_listed(folder, found)}"] if found else []


def _chosen(name: str, folder: Path, data_files: Sequence[str]) -> list[Path]:
    """Return the files below a folder that the recipe names."""
    for pattern in data_files:
        if not _below(folder, [pattern]):
            raise DataError(
                f"data.sources: given '{name}' with data_files '{pattern}', which matches no file in it; correct it"
            )
    return _below(folder, data_files)


def _below(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the files below a folder that have these paths or match these globs, each once."""
    found = (
        file
        for pattern in patterns
        for file in ([folder / pattern] if (folder / pattern).is_file() else _globbed(folder / pattern))
    )
    return list(dict.fromkeys(found))


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in the order of their paths, links followed, without hidden ones."""
    seen: set[str] = set()
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = [
            one for one in folders if not _is_hidden(one) and os.path.realpath(os.path.join(parent, one)) not in seen
        ]
        found += [Path(parent, file) for file in files if not _is_hidden(file)]
    yield from sorted(found)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _is_about(file: Path) -> bool:
    """Return whether a file in a folder of data holds no rows, by its name."""
    return _ending(file) in _WITHOUT_ROWS or file.name.partition(".")[0].lower() in _ABOUT


def _check_kinds(name: str, path: Path, files: Sequence[Path]) -> None:
    """Raise where files are links to nothing, no data files, or of several kinds."""
    for file in files:
        if not file.is_file():
            raise DataError(
                f"data.sources: given '{name}', whose '{file.name}' is no file or a symbolic link to none; correct or"
                " remove it"
            )
    known = {kind_of(file) for file in files}
    if len(known) == 1 and None not in known:
        return
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(_ending(file) or "no ending", []).append(file)
    listed = ", ".join(f"{len(some):,} {ending} such as '{some[0].name}'" for ending, some in kinds.items())
    if known == {None}:
        raise DataError(f"data.sources: given '{name}', which cannot be read ({listed}); {EXPECTED}; convert it")
    first = next(file for file in files if kind_of(file))
    folder = path if path.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    of_one_kind = [file for file in files if kind_of(file) == kind_of(first)]
    remedy = _remedy(folder, of_one_kind)
    raise DataError(
        f"data.sources: given '{name}', whose files are not of one kind ({listed}); {EXPECTED};"
        f" {remedy if path.is_dir() else f'name those of one kind, such as {first}'}, and make a source of each kind"
    )


def _remedy(folder: Path, files: Sequence[Path]) -> str:
    """Return the advice to name data files of a folder, which works as it is written."""
    first = files[0]
    endings = "".join(first.suffixes[-2 if first.suffix.lower() in COMPRESSED else -1 :])
    patterns = (f"*{glob.escape(endings)}", f"**/*{glob.escape(endings)}", first.relative_to(folder).as_posix())
    found = {pattern: set(_below(folder, [pattern])) for pattern in patterns}
    pattern = max((one for one in patterns if found[one] <= set(files)), key=lambda one: len(found[one]))
    return f"name the files to read with `data_files`, such as `data_files: ['{pattern}']`"


def _listed(folder: Path, files: Sequence[Path], most: int = 5) -> str:
    names = [f"'{file.relative_to(folder).as_posix()}'" for file in files[:most]]
    return ", ".join(names) + (f" and {len(files) - most:,} more" if len(files) > most else "")


# ----------------------------------------------------------------------------------------------------------- splits


def _by_split(name: str, folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Group a folder's files by the splits that their names tell, if the names of all do.

    Files named exactly after a split (``test.jsonl``, ``test-00000-of-00002.parquet``, ``test/part.jsonl``) are never
    trained with others. A split's word at one end of a longer name counts where each file has one and they differ.
    """
    exact = {file: _exact_split(file.relative_to(folder)) for file in files}
    loose = {file: exact[file] or _loose_split(file) for file in files}
    if all(exact.values()) or (all(loose.values()) and {"train"} < set(loose.values())):
        grouped: dict[str, list[Path]] = {}
        for file, split in loose.items():
            grouped.setdefault(str(split), []).append(file)
        return grouped
    named = [file for file, split in exact.items() if split and not split.startswith("train")]
    if named:
        others = [file for file in files if not exact[file]]
        raise DataError(
            f"data.sources: given '{name}', a folder in which {_listed(folder, named)} are named after splits, but"
            f" {_listed(folder, others)} are not; name the files to read with `data_files`, such as"
            f" `data_files: ['{others[0].relative_to(folder).as_posix()}']`"
        )
    return {"train": list(files)}


def _stem(file: Path) -> str:
    """Return the name of a file without its endings."""
    name = file.name
    for _ in range(2):
        stem, ending = os.path.splitext(name)
        name = stem if ending.lower() in _KINDS or ending.lower() in COMPRESSED else name
    return name


def _exact_split(relative: Path) -> str | None:
    """Return the split after which a file or a folder of it is named."""
    stem = _stem(relative)
    shard = _SHARD.fullmatch(stem)
    base = shard["name"] if shard else re.sub(r"[-_.]?\d+$", "", stem)
    if shard and re.split(r"[-_]", base)[0].lower() in SPLITS:
        return SPLITS.get(base.lower(), base)  # also train_sft and the like, as on the hub
    names = [base, *reversed(relative.parts[:-1])]
    return next((SPLITS[one.lower()] for one in names if one.lower() in SPLITS), None)


def _loose_split(file: Path) -> str | None:
    """Return the split whose word is the first or the last of a file's name."""
    words = [word.lower() for word in re.split(r"[-_. ]+", _stem(file)) if word and not word.isdigit()] or [""]
    return SPLITS.get(words[-1]) or SPLITS.get(words[0])


def _of_card(name: str, folder: Path, subset: str | None) -> dict[str, list[Path]] | None:
    """Return the files by split that a folder's README.md lists for ``datasets``; None where it lists none."""
    configs = _configs(folder / "README.md")
    if not configs:
        return None
    names = [str(config.get("config_name", "default")) for config in configs]
    default = next((one for one, config in zip(names, configs, strict=True) if config.get("default")), None)
    wanted = subset or default or (names[0] if len(names) == 1 else "default")
    if wanted not in names:
        what = f"subset '{subset}', which its README.md does not list" if subset else "several subsets"
        raise DataError(
            f"data.sources: given '{name}' with {what}{did_you_mean(wanted, names)}; expected one of"
            f" {', '.join(names)}; write `subset: {names[0]}`"
        )
    config = configs[names.index(wanted)]
    inside = folder / str(config.get("data_dir") or "")
    listed = config.get("data_files")
    if listed is None:
        return _by_split(name, inside, [file for file in _walk(inside) if kind_of(file) and not _is_about(file)])
    if isinstance(listed, Mapping):
        listed = [{"split": split, "path": path} for split, path in listed.items()]
    splits: dict[str, list[Path]] = {}
    for entry in listed if isinstance(listed, list) else [listed]:
        named = entry if isinstance(entry, Mapping) else {"path": entry}
        paths = named.get("path")
        paths = paths if isinstance(paths, list) else [paths]
        if not all(isinstance(path, str) for path in paths):
            raise DataError(
                f"data.sources: given '{name}', whose README.md lists the data_files {entry!r}, expected a path or a"
                " list of paths; correct it, or name the files with `data_files`"
            )
        files = _below(inside, paths)
        if files:  # a folder may hold some of the splits only
            splits.setdefault(str(named.get("split", "train")), []).extend(files)
    return splits


def _configs(card: Path) -> list[Mapping[str, Any]]:
    if not card.is_file():
        return []
    from huggingface_hub import metadata_load

    try:
        found = (metadata_load(card) or {}).get("configs")
    except Exception:  # no YAML at its beginning
        return []
    if not isinstance(found, list) or not all(isinstance(config, Mapping) for config in found):
        return []
    listed = [config for config in found if "data_files" in config or "data_dir" in config]
    return listed if len(listed) == len(found) else []
