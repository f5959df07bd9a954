"""Pairs of answers of lengths like UltraFeedback's, made of the demo's conversations."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.sft.rows import corpus

__all__ = ["write_pairs"]

_PROMPT = (100, 0.9, 350)
_ANSWER = (190, 0.6, 330)
"""Median, deviation of the logarithm, and most words of a text. UltraFeedback's prompts are short with a long tail, its
answers about twice as long. With both, a pair has at most 1,024 tokens for each answer with SmolLM2's tokenizer."""


def write_pairs(folder: Path, count: int, scale: float = 1.0) -> Path:
    """Write pairs as text in TRL's format, drawn with a fixed seed; more begin with the same.

    Args:
        folder: for the file.
        count: number of pairs.
        scale: factor of their lengths.
    """
    sentences = [message["content"] for conversation in corpus() for message in conversation]
    draw = random.Random(0)

    def text(median: float, deviation: float, most: float) -> str:
        words = min(most, draw.lognormvariate(0, deviation) * median) * scale
        made: list[str] = []
        while sum(len(part.split()) for part in made) < words:
            made.append(draw.choice(sentences))
        return " ".join(" ".join(made).split()[: max(2, round(words))])

    path = folder / f"pairs-{count}-{scale:g}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            pair = {"prompt": f"{text(*_PROMPT)}\n", "chosen": text(*_ANSWER), "rejected": text(*_ANSWER)}
            file.write(json.dumps(pair) + "\n")
    return path
