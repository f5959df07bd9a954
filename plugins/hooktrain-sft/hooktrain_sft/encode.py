"""Rendered rows to token ids and a mask of the trained ones, many rows at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.render import Rendered
from hooktrain_sft.trace import Span

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
        encodings = iter(self._encode([row.text for row in texts], offsets=not all(map(_is_whole, texts))))
        ids: list[Any] = []
        trained: list[tuple[int, int]] = []  # runs of trained tokens, by their place among all
        masks: list[tuple[int, NDArray[np.bool_]]] = []
        lengths = np.zeros(len(rows), np.int64)
        at = 0
        for index, row in enumerate(rows):
            begin = at
            if row.ids is not None:
                ids.append(row.ids.tolist())
                at += len(row.ids)
                masks.append((begin, np.ones(len(row.ids), np.bool_) if row.mask is None else row.mask))
            else:
                text_ids, encoding = next(encodings)
                ids += (row.before, text_ids, row.after)
                at += len(row.before)
                runs = [(0, len(text_ids))] if _is_whole(row) else _runs(encoding, len(text_ids), row.text, row.spans)
                trained += [(at + first, at + last) for first, last in runs]
                at += len(text_ids) + len(row.after)
                if row.after:
                    trained.append((at - len(row.after), at))
            lengths[index] = at - begin
        flat = np.fromiter(itertools.chain.from_iterable(ids), np.int32, at)
        mask = np.zeros(at, np.bool_)
        for first, last in trained:
            mask[first:last] = True
        for first, given in masks:
            mask[first : first + len(given)] = given
        return flat, mask, lengths

    def _encode(self, texts: list[str], offsets: bool) -> Any:
        """Ids of each text, and what knows where each token comes from, or None."""
        if self._direct is None and texts:
            # the tokenizers library takes half the time of the class around it, which some models' classes override
            self._reset()
            direct = self._backend.encode(texts[0], add_special_tokens=False).ids
            wrapped = self._tokenizer(texts[0], add_special_tokens=False, verbose=False)["input_ids"]
            self._direct = list(direct) == list(wrapped)
        if self._direct:
            self._reset()
            encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
            for encoding in encode(texts, add_special_tokens=False):
                yield encoding.ids, encoding
        elif texts:
            encoded = self._tokenizer(
                texts,
                add_special_tokens=False,
                return_offsets_mapping=offsets,
                return_attention_mask=False,
                verbose=False,
            )
            for index, ids in enumerate(encoded["input_ids"]):
                yield ids, encoded.encodings[index] if encoded.encodings else None

    def _reset(self) -> None:
        """A tokenizer.json may ask for truncation or padding; setting them while another thread encodes would fail."""
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()


def _is_whole(row: Rendered) -> bool:
    return row.spans == ((0, len(row.text)),)


def _runs(encoding: Any, length: int, text: str, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Which tokens are trained, as runs: first token, and the one behind the last."""
    runs = []
    for start, end in spans:
        if start == end:
            continue
        first = encoding.char_to_token(start)
        last = length if end == len(text) else encoding.char_to_token(end)
        # a token that begins elsewhere than the span needs a closer look, and so does white space without a token
        if (
            first is None
            or last is None
            or encoding.token_to_chars(first)[0] != start
            or (last < length and encoding.token_to_chars(last)[0] != end)
        ):
            return _looked_at(encoding, text, spans)
        runs.append((first, last))
    return runs


def _looked_at(encoding: Any, text: str, spans: Sequence[Span]) -> list[tuple[int, int]]:
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    trained = tokens_in_spans(offsets, text, spans)
    edges = np.flatnonzero(np.diff(trained, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


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
