"""Bytes of each token, from which the place of every token in a text follows.

The tokenizers library spends a third of its time on the offsets of tokens. Where the bytes of a text's tokens are
exactly the text, their lengths give the same offsets. That is checked for every text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooktrain_sft.chat.template_trace import Span

__all__ = ["Surfaces"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Surfaces:
    """The bytes of every token of a tokenizer.

    Args:
        backend: a ``tokenizers.Tokenizer``.
    """

    def __init__(self, backend: Any) -> None:
        added = {index: str(token.content) for index, token in backend.get_added_tokens_decoder().items()}
        words = {index: word for word, index in backend.get_vocab(with_added_tokens=False).items()}
        letters = _byte_letters()
        of_bytes = all(letter in letters for index, word in words.items() if index not in added for letter in word)
        self._bytes = [b""] * (max([*words, *added], default=-1) + 1)
        for index, word in words.items():
            if of_bytes:
                self._bytes[index] = bytes([letters[letter] for letter in word if letter in letters])
            else:
                byte = _BYTE.fullmatch(word)
                self._bytes[index] = bytes([int(byte[1], 16)]) if byte else word.replace("\u2581", " ").encode()
        for index, word in added.items():
            self._bytes[index] = word.encode()
        self._lengths = np.array([len(one) for one in self._bytes], np.int64)

    def write(self, ids: Sequence[int], text: bytes) -> bool:
        """Return whether the bytes of these tokens are this text."""
        return b"".join(map(self._bytes.__getitem__, ids)) == text

    def mask(
        self, ids: NDArray[np.int32], texts: Sequence[str], encoded: Sequence[bytes], spans: Sequence[Sequence[Span]]
    ) -> NDArray[np.bool_]:
        """Return the mask of trained tokens, by the rule of ``tokens_in_spans``; the tokens must write the texts.

        Args:
            ids: the tokens of all texts, shape (tokens,).
            texts: the texts.
            encoded: the same in UTF-8.
            spans: the trained spans of each text, in characters.

        Returns:
            Mask of shape (tokens,).
        """
        starts: list[int] = []
        ends: list[int] = []
        base = 0
        for text, data, wanted in zip(texts, encoded, spans, strict=True):
            wanted = [span for span in wanted if span[0] < span[1]]  # noqa: PLW2901
            places = sorted({place for span in wanted for place in span})
            if len(text) != len(data):
                lengths = (len(text[a:b].encode()) for a, b in itertools.pairwise([0, *places]))
                in_bytes = dict(zip(places, itertools.accumulate(lengths), strict=True))
                wanted = [(in_bytes[start], in_bytes[end]) for start, end in wanted]  # noqa: PLW2901
            starts += [base + start for start, _ in wanted]
            ends += [base + end for _, end in wanted]
            base += len(data)
        behind = np.cumsum(self._lengths[ids])  # end of each token
        at = np.concatenate([[0], behind[:-1]]) if len(behind) else behind
        # the first token that begins within a span, and the first that does not end within it
        first = np.searchsorted(at, starts, "left")
        last = np.searchsorted(behind, ends, "right")
        change = np.zeros(len(ids) + 1, np.int32)
        np.add.at(change, first, 1)
        np.add.at(change, np.maximum(first, last), -1)
        mask: NDArray[np.bool_] = np.cumsum(change[:-1]) > 0
        before = first - 1
        for place in np.flatnonzero((before >= 0) & (first > 0) & (behind[before] > starts) & (behind[before] <= ends)):
            token, start = int(before[place]), starts[place]
            piece = self._bytes[int(ids[token])]
            outside = start - int(at[token])
            mask[token] |= _is_space(piece[:outside]) and not _is_space(piece[outside:])
        return mask


def _is_space(data: bytes) -> bool:
    return data.decode(errors="replace").isspace()


def _byte_letters() -> dict[str, int]:
    """Return the bytes by their letters in byte-level tokenizers: printable ones themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = itertools.count(0x100)
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
