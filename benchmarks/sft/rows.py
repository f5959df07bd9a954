"""The conversations that are trained: those of the demo, and more made of them."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path

__all__ = ["write_demo", "write_long", "write_many"]

Message = dict[str, str]


def corpus() -> list[list[Message]]:
    """Return the demo's 507 conversations.

    Raises:
        FileNotFoundError: chatterbot-corpus is not installed.
    """
    from hooktrain.cli.demo import conversations

    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("chatterbot-corpus is not installed; install it with `pip install chatterbot-corpus`")
    return conversations(Path(next(iter(spec.submodule_search_locations))) / "data" / "english")


def write_demo(folder: Path) -> Path:
    """Write the 320 conversations that ``hooktrain demo`` trains."""
    from hooktrain.cli.demo import write_data

    write_data(corpus(), folder)
    return folder / "train.jsonl"


def write_many(folder: Path, rows: int) -> Path:
    """Write conversations that join one to four of the corpus, drawn with a fixed seed; more begin with the same."""
    found = corpus()
    draw = random.Random(0)

    def made() -> Iterator[list[Message]]:
        for _ in range(rows):
            yield [message for part in draw.choices(found, k=draw.randint(1, 4)) for message in part]

    return _write(folder / f"many-{rows}.jsonl", made())


def write_long(folder: Path, tokens: int) -> Path:
    """Write one conversation of more than ``tokens`` tokens."""
    found = corpus()
    draw = random.Random(0)
    messages: list[Message] = []
    words = 0
    while words <= tokens:  # a word has at least one token
        part = draw.choice(found)
        messages += part
        words += sum(len(message["content"].split()) for message in part)
    return _write(folder / f"long-{tokens}.jsonl", iter([messages]))


def _write(path: Path, rows: Iterator[list[Message]]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for messages in rows:
            file.write(json.dumps({"messages": messages}) + "\n")
    return path
