"""Scores of an answer against a reference, from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

__all__ = ["exact_match", "normalized", "rouge_l", "token_f1", "words"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"\w+")


def normalized(text: str) -> str:
    """Return a text as SQuAD compares it: in lower case, without punctuation, articles and repeated white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, in any script; signs between them do not count."""
    return _WORD.findall(text.lower())


def exact_match(prediction: str, reference: str, normalize: bool = True) -> float:
    """Return 1 where two texts are equal, and 0 elsewhere.

    Args:
        prediction: the answer of the model.
        reference: that of the data.
        normalize: whether case, punctuation, English articles and white space are ignored; otherwise only white space
            around the texts is.
    """
    if normalize:
        return float(normalized(prediction) == normalized(reference))
    return float(prediction.strip() == reference.strip())


def token_f1(prediction: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of the words, as SQuAD counts them (Rajpurkar et al., 2016)."""
    found, expected = normalized(prediction).split(), normalized(reference).split()
    if not found or not expected:
        return float(found == expected)
    shared = sum((Counter(found) & Counter(expected)).values())
    return 2 * shared / (len(found) + len(expected))


def rouge_l(prediction: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words (Lin, 2004), over the text as one sequence."""
    found, expected = words(prediction), words(reference)
    if not found or not expected:
        return float(found == expected)
    return 2 * _common(found, expected) / (len(found) + len(expected))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    before = [0] * (len(other) + 1)
    for word in one:
        now = [0]
        for at, theirs in enumerate(other):
            now.append(before[at] + 1 if word == theirs else max(before[at + 1], now[-1]))
        before = now
    return before[-1]
