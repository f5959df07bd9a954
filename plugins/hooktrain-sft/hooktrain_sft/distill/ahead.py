"""A teacher's likeliest tokens ahead: computed once for prepared data, kept in the cache, and read by runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from filelock import FileLock
from hooktrain_hf import make_frozen_model, models_of, remembered_digest, require_same_tokens, weights_fingerprint
from numpy.typing import NDArray
from torch import Tensor, nn

from hooktrain import Batch, ConfigDefaults, Data, DataError, Recipe, World, default_cache_dir, member
from hooktrain_sft.data.collate import collate_flat
from hooktrain_sft.data.documents import Documents
from hooktrain_sft.data.packed_dataset import PackedDataset, TokenSequence
from hooktrain_sft.distill.divergence import BesideTeacher
from hooktrain_sft.distill.loss import STORED
from hooktrain_sft.distill.teacher import TeacherForward
from hooktrain_sft.loss.chunked_linear import automatic_chunk_size

__all__ = ["TeacherRows", "likeliest", "store_teacher", "with_teacher"]

_LAYOUT = 1
"""Version of the files; increased when earlier ones can no longer be read."""
_RECORDS, _ENTRY = "teacher.bin", "entry.json"
_TOKENS = {"cpu": 2048}
"""Tokens of documents that the teacher gets at a time, by device type."""
_TOKENS_ELSEWHERE = 16384


def _record(k: int) -> np.dtype[Any]:
    """Return the record of a trained token: what :class:`StoredTeacher` has of it."""
    return np.dtype([("ids", "<i4", (k,)), ("log_probs", "<f4", (k,)), ("rest", "<f4", (1,))])


class TeacherRows:
    """A data set with a teacher's records of the trained tokens of each sequence.

    Args:
        dataset: the sequences.
        path: the file of records, of all documents in their order.
        k: tokens of a record.
    """

    def __init__(self, dataset: PackedDataset, path: Path, k: int) -> None:
        self.dataset, self.documents = dataset, dataset.documents
        self.path, self._k = path, k
        self._ends = np.concatenate([[0], np.cumsum(dataset.documents.supervised)])
        self._records: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> TokenSequence:
        row = self.dataset[index]
        if self._records is None:
            self._records = np.memmap(self.path, _record(self._k), "r")
        members = self.dataset.members(index % len(self))
        found = np.concatenate([self._records[self._ends[one] : self._ends[one + 1]] for one in members])
        return {**row, **dict(zip(STORED, (found["ids"], found["log_probs"], found["rest"]), strict=True))}

    def __reduce__(self) -> tuple[Any, ...]:
        return TeacherRows, (self.dataset, self.path, self._k)  # a worker process maps the file itself

    def row_name(self, row: int) -> str:
        """Return the examples of a sequence, as :class:`hooktrain.DatasetDefaults` says."""
        return self.dataset.row_name(row)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, shape (sequences,)."""
        return self.dataset.lengths


@attrs.frozen
class _Collate:
    """Collates sequences, and the records of their trained tokens one after the other."""

    collate: Callable[[list[Any]], Batch]

    def __call__(self, sequences: list[TokenSequence]) -> Batch:
        bare = [{name: value for name, value in one.items() if name not in STORED} for one in sequences]
        batch = self.collate(bare)
        if STORED[0] not in sequences[0]:
            return batch  # of the check of a model
        return {
            **batch,
            **{name: torch.from_numpy(np.concatenate([one[name] for one in sequences]))[None] for name in STORED},
        }


# ------------------------------------------------------------------------------------------------------------- reading


def with_teacher(data: Data, recipe: Recipe, tokenizer: Any) -> Data:
    """Return prepared data with the teacher's records; where some are missing, unchanged, with a report that says so.

    Raises:
        DataError: the weights of the teacher cannot be identified.
    """
    files = _Files.of(recipe, tokenizer)
    name, top_k = models_of(recipe).teacher.name_or_path, recipe.loss.top_k
    sets = {"": data.train, **data.evaluation}
    found = {one: files.open(rows) if isinstance(rows, PackedDataset) else None for one, rows in sets.items()}
    report = {**data.report, "teacher": {"name": name, "top_k": top_k}}
    if missing := [one or "training" for one, rows in found.items() if rows is None]:
        text = (
            f"loss.top_k: the log-probabilities of the {top_k:,} likeliest tokens by '{name}', as its weights are now,"
            f" are not stored for these examples ({', '.join(missing)}); run `hooktrain data RECIPE --teacher`, which"
            " computes them"
        )
        report["teacher"]["missing"] = text
        return attrs.evolve(data, report={**report, "warnings": [*data.report.get("warnings", ()), text]})
    train = found.pop("")
    assert train is not None
    key = f" teacher {files.key(train.documents)}"
    summary = f"{data.report.get('summary', '')}; {top_k:,} likeliest tokens by {name}"
    return attrs.evolve(
        data,
        train=train,
        evaluation={one: rows for one, rows in found.items() if rows is not None},
        collate=_Collate(data.collate),
        fingerprint=data.fingerprint + key,
        train_fingerprint=data.train_fingerprint + key,
        report={**report, "summary": summary},
    )


@attrs.frozen
class _Files:
    """Files of a recipe's teacher in the cache.

    Attributes:
        folder: the folder of all entries.
        parts: what an entry depends on besides the documents.
        size: tokens of the tokenizer.
        top_k: tokens that are asked for.
    """

    folder: Path
    parts: str
    size: int
    top_k: int

    @classmethod
    def of(cls, recipe: Recipe, tokenizer: Any) -> _Files:
        config, top_k = models_of(recipe).teacher, recipe.loss.top_k
        folder = recipe.data.cache_dir or default_cache_dir()
        weights = weights_fingerprint(str(config.name_or_path))
        if weights is None or folder is None:
            what = (
                "data.cache_dir: none is given, and there is no home folder"
                if folder is None
                else (
                    f"models.teacher.name_or_path: given '{config.name_or_path}', whose files cannot be read, or whose"
                    " commit on the hub is not known"
                )
            )
            raise DataError(f"{what}, so that nothing can be stored or found; give a folder, or remove loss.top_k")
        dtype = config.dtype or member(recipe.model, _Types, "weights_dtype")
        return cls(Path(folder).expanduser() / "teacher", f"{weights} {dtype}", len(tokenizer), top_k)

    def key(self, documents: Documents) -> str:
        """Return the name of the entry for documents."""
        parts = [_LAYOUT, self.parts, self.size, self.top_k, documents.digest()]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def open(self, rows: PackedDataset) -> TeacherRows | None:
        """Return a data set with its records; None where there are none, or they are damaged."""
        folder = self.folder / self.key(rows.documents)
        path = folder / _RECORDS
        try:
            entry = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))
            k, tokens = int(entry["k"]), int(rows.documents.supervised.sum())
            complete = path.stat().st_size == tokens * _record(k).itemsize
            if not complete or remembered_digest(path) != entry["digest"]:
                return None
        except (OSError, ValueError, LookupError, TypeError, DataError):
            return None
        return TeacherRows(rows, path, k)


class _Types:
    """Fields of a model's config, with their defaults."""

    weights_dtype = "fp32"


# ------------------------------------------------------------------------------------------------------------- storing


def store_teacher(recipe: Recipe, tokenizer: Any, world: World, hooks: Any) -> dict[str, Any]:
    """Compute and keep what is missing of the teacher's records; return facts about each set.

    Raises:
        DataError: it cannot be written.
        ModelError: the teacher cannot be loaded, or has another vocabulary.
    """
    data: Data = hooks.make_data(config=recipe.data, tokenizer=tokenizer, world=world, hooks=hooks, recipe=recipe)
    files, facts = _Files.of(recipe, tokenizer), {}
    teacher: _Loaded | None = None
    for name, rows in (("train", data.train), *data.evaluation.items()):
        rows = rows.dataset if isinstance(rows, TeacherRows) else rows  # noqa: PLW2901
        if not isinstance(rows, PackedDataset):
            raise DataError("loss.top_k: another plugin has changed the data sets, expected those of hooktrain-sft")
        tokens, began = int(rows.documents.supervised.sum()), time.perf_counter()
        found = files.open(rows)
        if found is None:
            teacher = teacher or _Loaded(recipe, tokenizer, world, hooks)
            _write(files, rows.documents, teacher, name)
            found = files.open(rows)
        if found is None:
            raise DataError(f"data.cache_dir: what was just written to '{files.folder}' cannot be read; check the disk")
        facts[name] = {
            "tokens": tokens,
            "bytes": found.path.stat().st_size,
            "seconds": round(time.perf_counter() - began, 2),
            "path": str(found.path),
        }
    return facts


class _Loaded:
    """The teacher on its device."""

    def __init__(self, recipe: Recipe, tokenizer: Any, world: World, hooks: Any) -> None:
        config = models_of(recipe).teacher

        def check(made: Any) -> None:
            require_same_tokens("teacher", config, made, tokenizer)

        given = {"hooks": hooks, "tokenizer": tokenizer, "world": world}
        extra = make_frozen_model("teacher", config, nn.Module(), recipe, **given, check=check, grows=False)
        assert extra is not None, "a teacher by name is a model of its own"
        named = str(member(recipe.strategy, ConfigDefaults, "device"))
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(automatic if named == "auto" else named)
        self.model = extra.build().eval().requires_grad_(False).to(self.device, extra.torch_dtype)
        self._forward = TeacherForward()

    def __call__(self, rows: Sequence[TokenSequence]) -> tuple[BesideTeacher, int]:
        """Return what the teacher says about documents, and the number of their trained tokens."""
        batch = collate_flat(rows)
        number = int((batch["labels"][0] != -100).sum())
        batch = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        batch.pop("token_weights", None)
        return self._forward(self.model, batch, number), number


def _write(files: _Files, documents: Documents, teacher: _Loaded, name: str) -> None:
    """Write the entry of documents, which appears when it is complete."""
    final = files.folder / files.key(documents)
    partial = final.with_name(f"{final.name}.{os.getpid()}.partial")
    try:
        files.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(final.with_name(f"{final.name}.lock"))), _removed_after(partial):
            partial.mkdir()
            digest, k = hashlib.sha256(), min(files.top_k, files.size)
            with (partial / _RECORDS).open("wb") as file:
                for records in _progress(_records(files, documents, teacher), documents, name):
                    digest.update(records.tobytes())
                    file.write(records.tobytes())
                file.flush()
                os.fsync(file.fileno())
            (partial / _ENTRY).write_text(json.dumps({"k": k, "digest": digest.hexdigest()}), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)  # damaged
            os.rename(partial, final)
    except OSError as problem:
        raise DataError(
            f"data.cache_dir: the teacher's log-probabilities cannot be written to '{files.folder}'"
            f" ({problem.strerror}); free some space there, or name another folder"
        ) from problem


@contextmanager
def _removed_after(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _records(files: _Files, documents: Documents, teacher: _Loaded) -> Iterator[NDArray[Any]]:
    """Yield the records of the trained tokens of documents, some documents at a time."""
    rows = PackedDataset(documents)
    most = _TOKENS.get(teacher.device.type, _TOKENS_ELSEWHERE)
    ends = np.cumsum(documents.lengths)
    start = 0
    while start < len(documents):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, "right")))
        said, number = teacher([rows[index] for index in range(start, stop)])
        yield likeliest(said, number, files.top_k, files.size)
        start = stop


def likeliest(teacher: BesideTeacher, number: int, top_k: int, size: int) -> NDArray[Any]:
    """Return the records of the first ``number`` tokens; ids are those of a tokenizer of ``size`` tokens."""
    made = []
    chunk, at = 16, 0
    while at < number:
        logits = teacher.head(teacher.values[at : min(at + chunk, number)])  # (tokens, vocabulary)
        at += len(logits)
        chunk = automatic_chunk_size(logits.shape[1], logits.device.type)
        total = logits.logsumexp(1, keepdim=True)
        found = logits[:, :size].topk(min(top_k, size, logits.shape[1]), 1)
        rest = logits.scatter_(1, found.indices, float("-inf")).logsumexp(1, keepdim=True)
        records = np.empty(len(logits), _record(found.indices.shape[1]))
        records["ids"] = found.indices.cpu().numpy()
        records["log_probs"] = (found.values - total).float().cpu().numpy()
        records["rest"] = (rest - total).float().cpu().numpy()
        made.append(records)
    return np.concatenate(made) if made else np.empty(0, _record(min(top_k, size)))


def _progress(parts: Iterator[NDArray[Any]], documents: Documents, name: str) -> Iterator[NDArray[Any]]:
    """Show a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console, total = Console(stderr=True), int(documents.supervised.sum())
    if not console.is_terminal:
        yield from parts
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"teacher, {name}", total=total)
        for records in parts:
            yield records
            bar.advance(task, len(records))
