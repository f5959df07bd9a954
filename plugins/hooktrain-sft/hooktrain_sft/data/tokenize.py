"""Tokenization of rendered examples in batches, with the mask of trained tokens."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.chat.rendered import Rendered, product_of
from hooktrain_sft.chat.template_trace import Span
from hooktrain_sft.compat import is_fast_tokenizer
from hooktrain_sft.data.arrow_store import Ids, Mask
from hooktrain_sft.data.token_bytes import Surfaces

__all__ = ["Encoder", "tokens_in_spans"]


class Encoder:
    """Tokenizes texts without adding special tokens, truncation or padding.

    An encoder may be used by one thread while others render with the same tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not is_fast_tokenizer(tokenizer):
            raise DataError(
                f"the tokenizer is a {type(tokenizer).__name__}, expected a fast one, which knows the place of each"
                " token in the text; convert it to a tokenizer.json"
            )
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._direct: bool | None = None
        self._surfaces: Surfaces | None = None

    def __call__(self, examples: Sequence[Rendered]) -> list[tuple[Ids, Mask]]:
        """Return ids and mask of each sequence of the examples, each of shape (tokens,)."""
        ids, mask, lengths = self.flat(examples)
        ends = np.cumsum(lengths)[:-1]
        return list(zip(np.split(ids, ends), np.split(mask, ends), strict=True)) if len(examples) else []

    def flat(self, examples: Sequence[Rendered]) -> tuple[Ids, Mask, NDArray[np.int64]]:
        """Tokenize examples to flat arrays.

        Returns:
            Ids and mask, shape (tokens of all examples,), and the tokens of each sequence, shape (sequences,); an
            example is one, or as many as it has ``sequences``. The mask holds weights where any is neither 0 nor 1.
        """
        if any(example.sequences for example in examples):
            examples = [one for example in examples for one in example.sequences or (example,)]
        texts = [example for example in examples if example.ids is None]
        listed, found = self._encode(texts)
        lengths = np.fromiter(map(len, listed), np.int64, len(listed))
        ids = np.fromiter(itertools.chain.from_iterable(listed), np.int32, int(lengths.sum()))
        mask: Mask = self._mask(texts, ids, listed) if found is None else found
        if any(example.weights for example in texts):
            mask = self._weighted(texts, mask, lengths)
        if len(texts) == len(examples) and not any(example.before or example.after for example in examples):
            return ids, mask, lengths
        return _with_others(examples, ids, mask, lengths)

    def _encode(self, examples: Sequence[Rendered]) -> tuple[list[list[int]], NDArray[np.bool_] | None]:
        """Return the ids of each text, and the mask unless it follows from the ids."""
        texts = [example.text for example in examples]
        if any(example.plain for example in examples):
            return self._encode_plain(examples)
        if self._direct is None and texts:
            # the tokenizers library takes half the time of its transformers class, which some models override
            self._reset()
            direct = self._backend.encode(texts[0], add_special_tokens=False).ids
            wrapped = self._tokenizer(texts[0], add_special_tokens=False, verbose=False)["input_ids"]
            self._direct = list(direct) == list(wrapped)
            if self._direct:
                self._surfaces = Surfaces(self._backend)
        if self._direct:
            self._reset()
            if self._surfaces is not None or all(map(_is_all_trained, examples)):
                made = self._backend.encode_batch_fast(texts, add_special_tokens=False)
                return [encoding.ids for encoding in made], None
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings], _masks(examples, encodings)
        if not texts:
            return [], None
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return encoded["input_ids"], _masks(examples, encoded.encodings)

    def _encode_plain(self, examples: Sequence[Rendered]) -> tuple[list[list[int]], NDArray[np.bool_]]:
        """Return ids and mask of texts of which some hold special tokens as text.

        Such a text is cut at the special tokens that are tokens; what lies between them is tokenized without any.
        """
        ids: list[list[int]] = []
        masks = []
        self._reset()
        for example in examples:
            if not example.plain:
                made = self._backend.encode(example.text, add_special_tokens=False)
                ids.append(made.ids)
                masks.append(_masks([example], [made]))
                continue
            listed, offsets = self._plain(example)
            ids.append(listed)
            masks.append(tokens_in_spans(offsets, example.text, example.spans))
        return ids, np.concatenate(masks)

    def _plain(self, example: Rendered) -> tuple[list[int], NDArray[np.int64]]:
        special = {
            str(token): number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special
        }
        pattern = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        text = example.text
        cuts = [found.span() for found in re.finditer(pattern, text) if not _overlaps(found.span(), example.plain)]
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        before = self._backend.encode_special_tokens
        self._backend.encode_special_tokens = True
        try:
            at = 0
            for start, end in [*cuts, (len(text), len(text))]:
                piece = self._backend.encode(text[at:start], add_special_tokens=False)
                ids += piece.ids
                offsets += [(at + low, at + high) for low, high in piece.offsets]
                if start < end:
                    ids.append(special[text[start:end]])
                    offsets.append((start, end))
                at = end
        finally:
            self._backend.encode_special_tokens = before
        # some tokenizers write a text in pieces in another way, such as with a space before each
        other = "".join(
            "x" * (end - start) if kind else text[start:end] for start, end, kind in _pieces(text, example.plain)
        )
        whole = self._backend.encode(other, add_special_tokens=False)
        known = _by_place(ids, offsets)
        for (low, high), numbers in _by_place(whole.ids, whole.offsets).items():
            if known.get((low, high), numbers) != numbers and not _overlaps((low, high), example.plain):
                raise DataError(
                    f"the tokenizer writes {text[low:high]!r} in another way where special tokens in the text stay"
                    " text, so that `data.special_tokens_in_text: plain` is not possible with it; use keep or error"
                )
        return ids, np.array(offsets, np.int64).reshape(-1, 2)

    def _mask(self, examples: Sequence[Rendered], ids: NDArray[np.int32], listed: list[list[int]]) -> NDArray[np.bool_]:
        """Return the mask of all texts from the bytes of their tokens."""
        if self._surfaces is None or all(map(_is_all_trained, examples)):
            return np.ones(len(ids), np.bool_)
        texts = [example.text for example in examples]
        encoded = [text.encode() for text in texts]
        written = [self._surfaces.write(*pair) for pair in zip(listed, encoded, strict=True)]
        if all(written):
            return self._surfaces.mask(ids, texts, encoded, [example.spans for example in examples])
        parts = []
        self._reset()
        for example, one, data, proven in zip(examples, listed, encoded, written, strict=True):
            if proven:
                parts.append(self._surfaces.mask(np.array(one, np.int32), [example.text], [data], [example.spans]))
            else:  # normalized, or with white space that a special token includes
                parts.append(_masks([example], [self._backend.encode(example.text, add_special_tokens=False)]))
        if 4 * sum(written) < 3 * len(written):
            self._surfaces = None
        return np.concatenate(parts)

    def _weighted(self, examples: Sequence[Rendered], mask: Mask, lengths: NDArray[np.int64]) -> Mask:
        """Return the weights of all texts; their tokens are looked up once more, for their places."""
        made = mask.astype(np.float32)
        ends = np.cumsum(lengths).tolist()
        some = [number for number, example in enumerate(examples) if example.weights]
        texts = [examples[number].text for number in some]
        encodings: Any
        if self._direct is False and not any(example.plain for example in examples):
            options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
            encodings = self._tokenizer(texts, **options)["offset_mapping"]
        else:
            self._reset()
            encodings = [one.offsets for one in self._backend.encode_batch(texts, add_special_tokens=False)]
        for number, offsets in zip(some, encodings, strict=True):
            example = examples[number]
            places = self._plain(example)[1] if example.plain else np.array(offsets, np.int64).reshape(-1, 2)
            made[ends[number] - len(places) : ends[number]] *= _factors(places, example)
        return _narrowed(made)

    def _reset(self) -> None:
        """Disable truncation and padding, which a tokenizer.json may enable; not while another thread encodes."""
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()


def _with_others(
    examples: Sequence[Rendered], ids: Ids, mask: Mask, lengths: NDArray[np.int64]
) -> tuple[Ids, Mask, NDArray[np.int64]]:
    """Add the tokens before and after the texts, and the examples that are tokenized already."""
    all_ids: list[Any] = []
    all_masks: list[Any] = []
    ends = np.cumsum(lengths).tolist()
    texts = zip([0, *ends[:-1]], ends, strict=True) if ends else iter(())
    made = np.zeros(len(examples), np.int64)
    for index, example in enumerate(examples):
        if example.ids is not None:
            parts = [(example.ids, np.ones(len(example.ids), np.bool_) if example.mask is None else example.mask)]
        else:
            begin, end = next(texts)
            parts = [
                (np.array(example.before, np.int32), np.zeros(len(example.before), np.bool_)),
                (ids[begin:end], mask[begin:end]),
                (np.array(example.after, np.int32), np.ones(len(example.after), np.bool_)),
            ]
        all_ids += [one for one, _ in parts]
        all_masks += [one for _, one in parts]
        made[index] = sum(len(one) for one, _ in parts)
    return np.concatenate(all_ids).astype(np.int32), _narrowed(np.concatenate(all_masks)), made


def _narrowed(mask: NDArray[Any]) -> Mask:
    """Return a mask as booleans, or where there are other weights than 0 and 1 in single precision.

    Raises:
        DataError: when a plugin has given a weight that is none.
    """
    if mask.dtype.kind != "f":
        return mask.astype(np.bool_)
    if not (np.isfinite(mask) & (mask >= 0)).all():
        raise DataError(
            "render_example returned a mask with weights that are negative or not finite, expected 0 or positive"
            " numbers; correct the plugin that renders"
        )
    return mask.astype(np.float32 if ((mask != 0) & (mask != 1)).any() else np.bool_)


def _factors(offsets: NDArray[np.int64], example: Rendered) -> NDArray[np.float64]:
    """Return the factor of each token: that of the part with its first character that is no white space, if any."""
    spaces = np.fromiter(map(str.isspace, example.text), np.bool_, len(example.text))
    # from each place on the next character that is no white space
    solid = np.append(np.where(spaces, len(spaces), np.arange(len(spaces))), len(spaces))
    solid = np.minimum.accumulate(solid[::-1])[::-1]
    starts, ends = offsets[:, 0], offsets[:, 1]
    at = np.where(solid[starts] < ends, solid[starts], starts)
    begins, stops, weights = (np.array(column) for column in zip(*product_of(example.weights), strict=True))
    part = np.searchsorted(begins, at, "right") - 1
    return np.where((part >= 0) & (at < stops[part]), weights[part], 1.0)


def _by_place(ids: Sequence[int], offsets: Sequence[Span]) -> dict[Span, list[int]]:
    """Return the tokens at each place; a character may be several."""
    made: dict[Span, list[int]] = {}
    for number, place in zip(ids, offsets, strict=True):
        made.setdefault(place, []).append(number)
    return made


def _overlaps(span: Span, others: Sequence[Span]) -> bool:
    return any(start < span[1] and span[0] < end for start, end in others)


def _pieces(text: str, plain: Sequence[Span]) -> Iterator[tuple[int, int, bool]]:
    """Yield the pieces of a text, and whether each is a special token that stays text."""
    at = 0
    for start, end in plain:
        yield at, start, False
        yield start, end, True
        at = end
    yield at, len(text), False


def _masks(examples: Sequence[Rendered], encodings: Sequence[Any]) -> NDArray[np.bool_]:
    """Return the mask of all texts from the tokenizer's offsets."""
    parts = [
        np.ones(len(encoding), np.bool_)
        if _is_all_trained(example)
        else tokens_in_spans(np.array(encoding.offsets, np.int64).reshape(-1, 2), example.text, example.spans)
        for example, encoding in zip(examples, encodings, strict=True)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.bool_)


def _is_all_trained(example: Rendered) -> bool:
    return example.spans == ((0, len(example.text)),)


def tokens_in_spans(offsets: NDArray[np.int64], text: str, spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Return the mask of the tokens that lie within one of the spans.

    A token that also covers text outside, such as two line breaks of which one belongs to the prompt, is not trained,
    because the model never has to write it after that prompt. The exception is a first word that includes the white
    space before it, as in many tokenizers; otherwise the answer would be trained from its second word on.

    Args:
        offsets: start and end of each token in characters, shape (tokens, 2).
        text: the tokenized text.
        spans: the trained spans, in characters.

    Returns:
        Mask of shape (tokens,).
    """
    trained = np.zeros(len(offsets), np.bool_)
    starts, ends = offsets[:, 0], offsets[:, 1]
    if len(spans) > 64 and (np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all():
        for start, end in spans:  # only the tokens near it
            low, high = np.searchsorted(ends, start, "left"), np.searchsorted(starts, end, "right")
            trained[low:high] |= tokens_in_spans(offsets[low:high], text, [(start, end)])
        return trained
    for start, end in spans:
        # where a tokenizer trims white space off the offsets, a token of white space is empty, at its own end
        begins = (starts >= start) & ((starts < ends) | (starts > start))
        trained |= begins & (ends <= end)
        for index in np.flatnonzero((starts < start) & (ends > start) & (ends <= end)):
            before, within = text[starts[index] : start], text[start : ends[index]]
            trained[index] = before.isspace() and not within.isspace()
    return trained
