"""The project speaks the field's words: nothing is named as it was before, and no phrase of then is left."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.words import NAMES, in_python, in_text

ROOT = Path(__file__).parents[1]
EXCEPTIONS = {
    "tolerance": "how far two numbers may be apart, as everywhere in numerics",
}
"""Names that are right in another sense, each with its reason; ten at most."""
NOT_READ = {
    *("hooktrain/renamed.py", "hooktrain/guides/using/changelog.md"),
    *("tests/words.py", "tests/test_words.py", "tests/test_renamed.py"),
}
"""Files that hold the words to tell of them."""


def files() -> list[Path]:
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [
        ROOT / name
        for name in kept
        if Path(name).suffix in (".py", ".md", ".patch")
        and name not in NOT_READ
        and not name.startswith("benchmarks/results")
        and (ROOT / name).exists()
    ]


def test_no_old_word_is_left():
    found = []
    for path in files():
        read = in_python if path.suffix == ".py" else in_text
        for word, line in read(path.read_text(encoding="utf-8")):
            if word not in EXCEPTIONS:
                found.append(f"{path.relative_to(ROOT)}:{line}: {word}")
        if path.stem in NAMES:
            found.append(f"{path.relative_to(ROOT)}: its name")
    assert not found, f"{len(found)} places, see tests/words.py for what to say:\n" + "\n".join(found)


def test_exceptions_are_few():
    assert len(EXCEPTIONS) <= 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class SegmentError: ...", ["SegmentError"]),
        ("def f(in_hand): ...", ["in hand"]),
        ("x.tolerance = 1", ["tolerance"]),
        ("f(neutral=True)", ["neutral"]),
        ("'''It is\nall the\nsame.'''", ["all the same"]),
        ("'''A row by itself.'''", ["by itself"]),
        ("'''Nothing waits for the device.'''", []),
    ],
)
def test_what_is_found_in_python(text, words):
    assert [word for word, _ in in_python(text)] == words


def test_what_is_found_in_documents():
    assert [word for word, _ in in_text("# Segments\n\nA segment.\nIt goes on all the same.")] == [
        "segments",
        "all the same",
    ]
