"""Rendered rows to token ids and a mask of the trained ones, many rows at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.render import Rendered
from hooktrain_sft.template import Span

__all__ = ["Encoder", "tokens_in_spans"]


class Encoder:
    """Tokenizes texts as they are: no special tokens added, nothing truncated, nothing padded."""

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
        whole = [row.spans == ((0, len(row.text)),) for row in rows]
        texts = [row.text for row in rows]
        encoded = self._encode(texts, offsets=not all(whole))
        made = []
        for row, all_trained, (text_ids, offsets) in zip(rows, whole, encoded, strict=True):
            if all_trained or offsets is None:
                mask = np.ones(len(text_ids), np.bool_)
            else:
                mask = tokens_in_spans(offsets, row.text, row.spans)
            ids = np.concatenate([np.array(row.before, np.int32), text_ids, np.array(row.after, np.int32)])
            trained = np.concatenate([np.zeros(len(row.before), np.bool_), mask, np.ones(len(row.after), np.bool_)])
            made.append((ids, trained))
        return made

    def _encode(self, texts: Sequence[str], offsets: bool) -> Any:
        """Ids of shape (tokens,) and offsets of shape (tokens, 2), or None, of each text."""
        if self._direct is None and texts:
            # the tokenizers library takes half the time of the class around it, which some models' classes override
            self._reset()
            direct = self._backend.encode(texts[0], add_special_tokens=False).ids
            wrapped = self._tokenizer(texts[0], add_special_tokens=False, verbose=False)["input_ids"]
            self._direct = list(direct) == list(wrapped)
        if self._direct:
            self._reset()
            encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
            for encoding in encode(list(texts), add_special_tokens=False):
                ids = np.array(encoding.ids, np.int32)
                yield ids, _pairs(encoding.offsets) if offsets else None
        elif texts:
            encoded = self._tokenizer(
                list(texts),
                add_special_tokens=False,
                return_offsets_mapping=offsets,
                return_attention_mask=False,
                verbose=False,
            )
            for index, ids in enumerate(encoded["input_ids"]):
                yield np.array(ids, np.int32), _pairs(encoded["offset_mapping"][index]) if offsets else None

    def _reset(self) -> None:
        """A tokenizer.json may ask for truncation or padding."""
        self._backend.no_truncation()
        self._backend.no_padding()


def _pairs(offsets: Sequence[Span]) -> NDArray[np.int64]:
    flat = np.fromiter(itertools.chain.from_iterable(offsets), np.int64, 2 * len(offsets))
    return flat.reshape(-1, 2)


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
