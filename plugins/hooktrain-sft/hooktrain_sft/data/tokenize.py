"""Rendered rows to token ids and a mask of the trained ones, many rows at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.chat.render import Rendered
from hooktrain_sft.chat.template_trace import Span
from hooktrain_sft.data.token_bytes import Surfaces

__all__ = ["Encoder", "tokens_in_spans"]


class Encoder:
    """Tokenizes texts as they are: no special tokens added, nothing truncated, nothing padded.

    One encoder may be used by one thread while others render with the same tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"the tokenizer is a {type(tokenizer).__name__}, expected a fast one, which knows where in the text"
                " each token comes from; convert it to a tokenizer.json"
            )
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._direct: bool | None = None
        self._surfaces: Surfaces | None = None

    def __call__(self, rows: Sequence[Rendered]) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        """Ids and mask of each row, each of shape (tokens,)."""
        ids, mask, lengths = self.flat(rows)
        ends = np.cumsum(lengths)[:-1]
        return list(zip(np.split(ids, ends), np.split(mask, ends), strict=True)) if len(rows) else []

    def flat(self, rows: Sequence[Rendered]) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
        """All rows end to end.

        Returns:
            Ids and mask, shape (tokens of all rows,), and the tokens of each row, shape (rows,).
        """
        texts = [row for row in rows if row.ids is None]
        listed, mask = self._encode(texts)
        lengths = np.fromiter(map(len, listed), np.int64, len(listed))
        ids = np.fromiter(itertools.chain.from_iterable(listed), np.int32, int(lengths.sum()))
        if mask is None:
            mask = self._mask(texts, ids, listed)
        if len(texts) == len(rows) and not any(row.before or row.after for row in rows):
            return ids, mask, lengths
        return _with_others(rows, ids, mask, lengths)

    def _encode(self, rows: Sequence[Rendered]) -> tuple[list[list[int]], NDArray[np.bool_] | None]:
        """Ids of each text; and the mask, unless it follows from the ids."""
        texts = [row.text for row in rows]
        if self._direct is None and texts:
            # the tokenizers library takes half the time of the class around it, which some models' classes override
            self._reset()
            direct = self._backend.encode(texts[0], add_special_tokens=False).ids
            wrapped = self._tokenizer(texts[0], add_special_tokens=False, verbose=False)["input_ids"]
            self._direct = list(direct) == list(wrapped)
            if self._direct:
                self._surfaces = Surfaces(self._backend)
        if self._direct:
            self._reset()
            if self._surfaces is not None or all(map(_is_whole, rows)):
                made = self._backend.encode_batch_fast(texts, add_special_tokens=False)
                return [encoding.ids for encoding in made], None
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings], _masks(rows, encodings)
        if not texts:
            return [], None
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return encoded["input_ids"], _masks(rows, encoded.encodings)

    def _mask(self, rows: Sequence[Rendered], ids: NDArray[np.int32], listed: list[list[int]]) -> NDArray[np.bool_]:
        """The mask of all texts, from the bytes that their tokens write."""
        if self._surfaces is None or all(map(_is_whole, rows)):
            return np.ones(len(ids), np.bool_)
        texts = [row.text for row in rows]
        encoded = [text.encode() for text in texts]
        written = [self._surfaces.write(*pair) for pair in zip(listed, encoded, strict=True)]
        if all(written):
            return self._surfaces.mask(ids, texts, encoded, [row.spans for row in rows])
        parts = []
        self._reset()
        for row, one, data, proven in zip(rows, listed, encoded, written, strict=True):
            if proven:
                parts.append(self._surfaces.mask(np.array(one, np.int32), [row.text], [data], [row.spans]))
            else:  # normalized, or with white space that a special token takes along
                parts.append(_masks([row], [self._backend.encode(row.text, add_special_tokens=False)]))
        if 4 * sum(written) < 3 * len(written):
            self._surfaces = None
        return np.concatenate(parts)

    def _reset(self) -> None:
        """A tokenizer.json may ask for truncation or padding; setting them while another thread encodes would fail."""
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()


def _with_others(
    rows: Sequence[Rendered], ids: NDArray[np.int32], mask: NDArray[np.bool_], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
    """The tokens of texts, with those around them, and with rows that were tokens already."""
    all_ids: list[Any] = []
    all_masks: list[Any] = []
    ends = np.cumsum(lengths).tolist()
    texts = zip([0, *ends[:-1]], ends, strict=True) if ends else iter(())
    made = np.zeros(len(rows), np.int64)
    for index, row in enumerate(rows):
        if row.ids is not None:
            parts = [(row.ids, np.ones(len(row.ids), np.bool_) if row.mask is None else row.mask)]
        else:
            begin, end = next(texts)
            parts = [
                (np.array(row.before, np.int32), np.zeros(len(row.before), np.bool_)),
                (ids[begin:end], mask[begin:end]),
                (np.array(row.after, np.int32), np.ones(len(row.after), np.bool_)),
            ]
        all_ids += [one for one, _ in parts]
        all_masks += [one for _, one in parts]
        made[index] = sum(len(one) for one, _ in parts)
    return np.concatenate(all_ids).astype(np.int32), np.concatenate(all_masks).astype(np.bool_), made


def _masks(rows: Sequence[Rendered], encodings: Sequence[Any]) -> NDArray[np.bool_]:
    """The mask of all texts, from what the tokenizer says of where its tokens come from."""
    parts = [
        np.ones(len(encoding), np.bool_)
        if _is_whole(row)
        else tokens_in_spans(np.array(encoding.offsets, np.int64).reshape(-1, 2), row.text, row.spans)
        for row, encoding in zip(rows, encodings, strict=True)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.bool_)


def _is_whole(row: Rendered) -> bool:
    return row.spans == ((0, len(row.text)),)


def tokens_in_spans(offsets: NDArray[np.int64], text: str, spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Which tokens lie within one of the spans.

    A token that also covers text outside, such as two line breaks of which one belongs to the prompt, is not trained:
    the model is never asked for it after that prompt. The exception is a first word that comes with the white space
    before it, as many tokenizers have it; without it the answer would be trained from its second word on.

    Args:
        offsets: start and end of each token in characters, shape (tokens, 2).
        text: what was tokenized.
        spans: the trained spans, in characters.

    Returns:
        Mask of shape (tokens,).
    """
    trained = np.zeros(len(offsets), np.bool_)
    starts, ends = offsets[:, 0], offsets[:, 1]
    for start, end in spans:
        # tokenizers that trim white space off the offsets leave a token of white space empty, at its own end
        begins = (starts >= start) & ((starts < ends) | (starts > start))
        trained |= begins & (ends <= end)
        for index in np.flatnonzero((starts < start) & (ends > start) & (ends <= end)):
            before, within = text[starts[index] : start], text[start : ends[index]]
            trained[index] = before.isspace() and not within.isspace()
    return trained
