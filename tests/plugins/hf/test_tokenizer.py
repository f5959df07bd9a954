"""The tokenizer ``huggingface``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hooktrain_hf.tokenizer import HFTokenizerConfig, build_tokenizer, end_of_turn_id

from hooktrain import ModelError
from hooktrain.recipe.resolver import resolve
from hooktrain.training.load import make_host
from tests.facts import facts


def test_loads_a_folder_without_the_network(folder: Path, no_network: None) -> None:
    tokenizer = build_tokenizer(HFTokenizerConfig(name_or_path=str(folder)))
    assert tokenizer.decode(tokenizer("What is it?")["input_ids"]) == "What is it?"


@pytest.mark.parametrize("as_file", [True, False])
def test_a_template_can_be_text_or_a_file(folder: Path, tmp_path: Path, as_file: bool) -> None:
    template = "{{ messages[0]['content'] }}!"
    (tmp_path / "chat.jinja").write_text(template)
    template_or_path = str(tmp_path / "chat.jinja") if as_file else template
    tokenizer = build_tokenizer(HFTokenizerConfig(name_or_path=str(folder), chat_template=template_or_path))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"


def test_a_revision_of_a_repository(hub: str, no_network: None) -> None:
    made = build_tokenizer(HFTokenizerConfig(name_or_path=hub, revision="wide"))
    assert made.chat_template == "wide" != build_tokenizer(HFTokenizerConfig(name_or_path=hub)).chat_template


@pytest.mark.parametrize(
    ("tokenizer", "revision"), [({}, "wide"), ("org/tiny", "wide"), ("org/other", None), ({"revision": "v2"}, "v2")]
)
def test_the_revision_is_the_models_where_the_repository_is(tokenizer: Any, revision: str | None) -> None:
    recipe = {
        "type": "causal",
        "model": {"name_or_path": "org/tiny", "revision": "wide"},
        "tokenizer": tokenizer,
        "data": {"sources": ["org/rows"]},
    }
    assert resolve(recipe, make_host()).tokenizer.revision == revision


def test_a_template_of_another_tokenizer(hub: str, folder: Path, no_network: None) -> None:
    own = build_tokenizer(HFTokenizerConfig(name_or_path=str(folder))).chat_template
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    for name, expected in ((str(folder), "{{ 1 }}"), (hub, own)):
        assert build_tokenizer(HFTokenizerConfig(name_or_path=hub, chat_template=name)).chat_template == expected
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=facts("tokenizer.chat_template", f"'{folder}'", "without a chat template")):
        build_tokenizer(HFTokenizerConfig(name_or_path=hub, chat_template=str(folder)))
    with pytest.raises(ModelError, match=facts("tokenizer.chat_template", "'org/none'", "hub")):
        build_tokenizer(HFTokenizerConfig(name_or_path=hub, chat_template="org/none"))


def test_a_template_file_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(ModelError, match=facts("tokenizer.chat_template", "'./no.jinja'", "Jinja")):
        build_tokenizer(HFTokenizerConfig(name_or_path=str(folder), chat_template="./no.jinja"))


@pytest.mark.parametrize("name", ["./nope", "~/nope", "/nope/x", "here/nope", "not a name", "a/b/c"])
def test_a_missing_path_does_not_use_the_network(
    name: str, no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ModelError) as raised:
        build_tokenizer(HFTokenizerConfig(name_or_path=name))
    message = str(raised.value)
    assert "model.name_or_path" in message and f"'{name}'" in message
    assert "config.json" in message and "\n" not in message


def test_a_hub_that_cannot_be_reached_is_one_error_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to the hub.\nMany more lines.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(
        ModelError, match=facts("model.name_or_path", "'some/model'", "couldn't connect", "spelling", "network")
    ) as raised:
        build_tokenizer(HFTokenizerConfig(name_or_path="some/model"))
    assert "\n" not in str(raised.value) and isinstance(raised.value.__cause__, OSError)


def test_the_end_of_turn_is_found_in_the_template(tokenizer: Any) -> None:
    assert tokenizer.decode([end_of_turn_id(tokenizer)]) == "<|im_end|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert end_of_turn_id(tokenizer) is None
    tokenizer.chat_template = "{{ raise_exception('only one turn, please') }}"
    assert end_of_turn_id(tokenizer) is None
