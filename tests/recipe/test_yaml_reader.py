"""Recipes that a stranger wrote: one sentence, within seconds and in bounded memory."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hooktrain import HooktrainError, RecipeError
from hooktrain.recipe.resolver import resolve
from hooktrain.recipe.yaml_reader import apply_overrides, read_recipe
from hooktrain.testing import host_of

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n"
    for before, name in zip(string.ascii_lowercase, string.ascii_lowercase[1:10], strict=False)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join(['*' + before] * 10)}]}}\n"
    for before, name in zip(string.ascii_lowercase, string.ascii_lowercase[1:10], strict=False)
)
HOSTILE = {
    "a list as a key": ("? [a, b]\n: 1\n", "line 1: a list stands where a key is expected"),
    "unfilled": ("a: 1\nlr: {{ lr }}\n", "line 2: .*placeholder '{{ }}'"),
    "unfilled, in quotes": ("model: {name_or_path: '{{ model }}'}\n", "model.name_or_path: .*placeholder"),
    "deep, in one line": ("a: " + "[" * 100_000, "64 levels"),
    "deep, in lines": ("".join(" " * depth + "a:\n" for depth in range(100)), "line 64: .*64 levels"),
    "digits": ("a: " + "9" * 10_000, "a number of 10,000 characters"),
    "sixtieths": ("a: 1" + ":59" * 50_000, "a number of 150,001 characters"),
    "beyond 64 bits": ("a: " + "9" * 30, "beyond 64 bits"),
    "aliases that explode": (LAUGHS, "line 5: more than 100,000 keys and values"),
    "merges that explode": (MERGES, "more than 100,000 keys and values"),
    "an alias within itself": ("a: &a [*a]\n", "a value that it is a part of"),
    "no date": ("a: 2024-99-99\n", "line 1: .*timestamp"),
    "a date as a key": ("2024-01-01: 1\n", "a key is a date"),
    "half a character": ('a: "\\ud800"\n', "U\\+D800"),
    "a null character": ('a: "\\0"\n', "U\\+0000"),
    "a tag": ("a: !!python/object/apply:os.system [ls]\n", "line 1: could not determine a constructor"),
    "no whole number": ("a: !!int x\n", "line 1: .*int"),
    "large": ("a: 1\n" * 300_000, "larger than 1 MiB"),
}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_recipe_holds_is_refused_in_one_sentence(tmp_path, case):
    text, said = HOSTILE[case]
    with pytest.raises(RecipeError, match=said) as refused:
        read_recipe(write(tmp_path, text))
    assert len(refused.value.complaints) == 1
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "word", ["a={{ x }}", "a=? [b]", "a=" + "[" * 1000, "a=" + "9" * 5000, "a" + ".a" * 5000 + "=1"]
)
def test_words_of_the_command_line_are_read_the_same_way(word):
    with pytest.raises(RecipeError):
        apply_overrides({"type": "tiny"}, [word])


def test_what_a_recipe_may_hold(tmp_path):
    """A byte order mark, aliases, merged keys and a template with its own placeholders."""
    text = (
        "\ufeffa: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}\nseed: 4294967295\n"
        "tokenizer: {chat_template: '{{ messages }}'}\ndata: {sources: ['x {{ y }}.jsonl']}\n"
    )
    assert read_recipe(write(tmp_path, text))["b"] == {"x": 1, "y": [{"x": 1}, {"x": 1}]}


def test_reading_looks_no_further_than_it_must(tmp_path):
    """An endless file is not read to its end."""
    with pytest.raises(RecipeError, match="larger than"):
        read_recipe(Path("/dev/zero"))


SCALARS = st.sampled_from(
    [
        "1",
        "1e999",
        "-.inf",
        "0x" + "f" * 80,
        "{{ x }}",
        "*a",
        "&a",
        "!!set",
        "!!omap [1]",
        "2024-13-01",
        "~",
        "on",
        "=",
        "<<",
    ]
) | st.text(string.printable, max_size=12)
LINES = st.tuples(st.integers(0, 4), st.sampled_from(["type", "data", "model", "? [a]", "- ", "<<"]) | SCALARS, SCALARS)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["type", "model", "data", "optimizer", "checkpoint", "plugins", "strategy", "seed", "epochs", "x"]
)


def _fuzz(folder: Path, count: int) -> None:
    host = host_of()

    def use(text: str) -> None:
        try:
            raw = apply_overrides(read_recipe(write(folder, text)), [])
            resolve({"type": "tiny", **raw}, host)
        except HooktrainError as problem:
            assert str(problem).encode("utf-8", "strict")

    @settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @given(st.lists(LINES, max_size=6))
    def of_text(lines: list[tuple[int, str, str]]) -> None:
        use("\n".join(f"{' ' * indent}{key}: {value}" for indent, key, value in lines))

    @settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @given(st.dictionaries(KEYS, PLAIN, max_size=4))
    def of_values(raw: dict[str, Any]) -> None:
        use(yaml.safe_dump(raw))

    @settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @given(st.binary(max_size=60))
    def of_bytes(held: bytes) -> None:
        path = folder / "recipe.yaml"
        path.write_bytes(held)
        try:
            read_recipe(path)
        except HooktrainError as problem:
            assert str(problem)

    of_text()
    of_values()
    of_bytes()


def test_fuzzing(tmp_path):
    _fuzz(tmp_path, 60)


@pytest.mark.thorough
def test_much_fuzzing(tmp_path):
    _fuzz(tmp_path, 3000)
