"""Recipes of other programs, small and written after real ones, and by hand the recipe that each of them is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hooktrain_recipes import templates

from hooktrain.recipe.dialects import values_of
from hooktrain.recipe.resolver import resolve
from tests.plugins.recipes.translating import host, resolved, translated

FOLDER = Path(__file__).parent / "examples"
EXAMPLES = {
    f"{file.stem}: {example['name']}": (file.stem, example)
    for file in sorted(FOLDER.glob("*.yaml"))
    for example in yaml.safe_load_all(file.read_text(encoding="utf-8"))
}


def written_out(value: Any) -> Any:
    """A recipe with chat templates in place of their names, such as ``<AXOLOTL chatml>``."""
    if isinstance(value, dict):
        return {name: written_out(each) for name, each in value.items()}
    if isinstance(value, list):
        return [written_out(each) for each in value]
    if isinstance(value, str) and value.startswith(("<AXOLOTL ", "<LLAMA_FACTORY ")):
        table, name, *system = value[1:-1].split(" ", 2)
        made = getattr(templates, table)[name]
        return made.jinja(marked=table != "AXOLOTL", default_system=system[0] if system else None)
    return value


def test_there_are_ten_of_each() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == {"arctic", "axolotl", "llamafactory", "trl"}
    assert all(sum(dialect == file.stem for dialect, _ in EXAMPLES.values()) == 10 for file in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_recipe_is_what_is_written_by_hand(name: str, tmp_path: Path) -> None:
    dialect, example = EXAMPLES[name]
    for file, held in example.get("files", {}).items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps(held))
    made = values_of(resolved(translated(dialect, example["theirs"], tmp_path)))
    expected = values_of(resolve(written_out(example["ours"]), host()).as_dict())
    differences = {
        path: (made.get(path), expected.get(path))
        for path in {*made, *expected}
        if made.get(path) != expected.get(path)
    }
    assert not differences, "made, and expected"
