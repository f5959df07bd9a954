"""From a recipe's data section to data sets, through the hooks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pluggy
import pytest
from hooktrain_sft.chat.render import Rendered
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig
from hooktrain_sft.data.documents import Documents
from hooktrain_sft.data.statistics import without_duplicates
from hooktrain_sft.plugin import SFTPlugin

from hooktrain import DataError, World, hookimpl
from hooktrain import hookspecs as engine_hookspecs
from tests.facts import facts


@attrs.frozen
class ListSource:
    """A source of examples in memory."""

    name_or_path: str
    examples: Any


class ListSourcePlugin:
    @hookimpl
    def load_source(self, config: Any) -> Any:
        return config.examples if isinstance(config, ListSource) else None


@pytest.fixture
def hooks() -> Any:
    return make_hooks()


def make_hooks(*plugins: object) -> Any:
    manager = pluggy.PluginManager("hooktrain")
    manager.add_hookspecs(engine_hookspecs)
    ours = SFTPlugin()
    ours.register_hookspecs(manager)
    for plugin in (ours, ListSourcePlugin(), *plugins):
        manager.register(plugin)
    manager.check_pending()
    return manager.hook


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


EXAMPLES = [conversation(f"What is {i}?", "yes " * (i % 7 + 1)) for i in range(40)]


def prepare(hooks: Any, config: Any, tokenizer: Any) -> Any:
    recipe = SimpleNamespace(model=None)
    return hooks.make_data(config=config, tokenizer=tokenizer, world=World(), hooks=hooks, recipe=recipe)


def text_of(data: Any, tokenizer: Any) -> str:
    return "".join(tokenizer.decode(data.train[i]["input_ids"]) for i in range(len(data.train)))


def test_a_sequence_for_each_example(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    data = prepare(hooks, SFTDataConfig(sources=(ListSource("a/rows", EXAMPLES),), max_length=128), tokenizer)
    assert len(data.train) == 40 and not data.evaluation and data.shuffle
    whole = "".join(tokenizer.apply_chat_template(example["messages"], tokenize=False) for example in EXAMPLES)
    assert text_of(data, tokenizer) == whole
    batch = data.collate([data.train[0], data.train[1]])
    assert batch["input_ids"].shape == (1, len(data.train[0]["input_ids"]) + len(data.train[1]["input_ids"]))
    report = data.report["train"]
    assert report["tokens_in"] == report["tokens_kept"] == sum(len(data.train[i]["input_ids"]) for i in range(40))
    assert report["tokens_trained"] == sum((data.train[i]["labels"] != -100).sum() for i in range(40))
    assert data.report["warnings"] == []
    json.dumps(data.report)


def test_packed(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    source = ListSource("a/rows", EXAMPLES)
    alone = prepare(hooks, SFTDataConfig(sources=(source,), max_length=256), tokenizer)
    data = prepare(hooks, SFTDataConfig(sources=(source,), max_length=256, pack_samples=True), tokenizer)
    assert data.report["train"]["bins"] == len(data.train) < 40
    for fact in ("tokens_kept", "tokens_trained"):
        assert data.report["train"][fact] == alone.report["train"][fact]
    assert sum((data.train[i]["position_ids"] == 0).sum() for i in range(len(data.train))) == 40
    assert data.collate([data.train[0], data.train[1]])["input_ids"].shape[0] == 2
    assert data.fingerprint != alone.fingerprint


def test_several_sources_and_named_evaluation_sets(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    sources = (ListSource("a/rows", EXAMPLES[:3]), ListSource("b/rows", EXAMPLES[3:5]))
    evaluation = (ListSource("hub/held.jsonl", EXAMPLES[5:6]), ListSource("c/held", EXAMPLES[6:8]))
    config = SFTDataConfig(sources=sources, eval_sources=evaluation, max_length=128)
    data = prepare(hooks, config, make_tokenizer("chatml"))
    assert len(data.train) == 5
    assert {name: len(examples) for name, examples in data.evaluation.items()} == {"held": 1, "held-2": 2}
    assert set(data.report["evaluation"]) == {"held", "held-2"}


@pytest.mark.parametrize("held_out", [{"train_eval_split": (0.9, 0.1)}, {"val_size": 4}], ids=["share", "number"])
def test_a_share_is_held_out(hooks: Any, make_tokenizer: Callable[..., Any], held_out: dict[str, Any]) -> None:
    tokenizer = make_tokenizer("chatml")

    def divided(seed: int) -> tuple[list[str], list[str]]:
        source = ListSource("rows", [conversation(f"What is {i}?", "yes") for i in range(40)])
        config = SFTDataConfig(sources=(source,), max_length=128, seed=seed, **held_out)
        data = prepare(hooks, config, tokenizer)
        sets = (data.train, data.evaluation["eval"])
        first, second = (
            [tokenizer.decode(examples[i]["input_ids"]) for i in range(len(examples))] for examples in sets
        )
        return first, second

    train, held = divided(1)
    assert (len(train), len(held)) == (36, 4) and len({*train, *held}) == 40
    assert divided(1) == (train, held) and divided(2)[1] != held


def test_more_held_out_than_there_is_is_an_error(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    source = ListSource("rows", [conversation(f"What is {i}?", "yes") for i in range(4)])
    with pytest.raises(DataError, match=facts("data.val_size", "4 of 4")):
        prepare(hooks, SFTDataConfig(sources=(source,), val_size=4, max_length=128), make_tokenizer("chatml"))


def test_exact_duplicates_are_removed_and_counted(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    train = ListSource("train", [*EXAMPLES[:8], EXAMPLES[3], *EXAMPLES[8:], EXAMPLES[0]])
    config = SFTDataConfig(
        sources=(train, ListSource("more", [EXAMPLES[1], conversation("New?", "yes")])),
        eval_sources=(
            ListSource("seen", [EXAMPLES[5], conversation("Unseen?", "yes"), conversation("Unseen?", "yes")]),
        ),
        exact_deduplication=True,
        max_length=128,
    )
    data = prepare(hooks, config, make_tokenizer("chatml"))
    assert (len(data.train), len(data.evaluation["seen"])) == (41, 1)
    assert (data.report["train"]["rows_duplicate"], data.report["evaluation"]["seen"]["rows_duplicate"]) == (3, 2)
    assert "3 duplicates removed" in data.report["summary"]
    assert not [line for line in data.report["warnings"] if "earlier" in line or "also trained" in line]
    seen = data.train.documents.examples.tolist()
    assert seen == [number for number in range(43 + 1) if number not in (8, 41, 42)], "the first of each stays"


def test_an_evaluation_set_of_duplicates_alone_is_an_error(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    same = ListSource("same", EXAMPLES[:2])
    config = SFTDataConfig(sources=(same,), eval_sources=(same,), exact_deduplication=True, max_length=128)
    with pytest.raises(DataError, match=facts("evaluation set 'same'", "all 2 examples", "exact_deduplication")):
        prepare(hooks, config, make_tokenizer("chatml"))


def test_duplicates_are_examples_with_all_their_sequences() -> None:
    """Examples of several sequences, as ``reasoning_turns: split`` makes them, are the same only if all are."""
    first, second, third = (np.array([number, 9]) for number in (1, 2, 3))
    documents = Documents.of([(ids, np.ones(2, bool)) for ids in (first, second, first, third, second, first, first)])
    documents = attrs.evolve(documents, examples=np.array([0, 0, 1, 1, 2, 2, 3]))
    made, removed = without_duplicates(documents)
    assert (made.examples.tolist(), removed) == ([0, 0, 1, 1, 2, 2, 3], 0)
    again = attrs.evolve(documents.select(np.array([0, 1, 0, 1])), examples=np.array([0, 0, 1, 1]))
    made, removed = without_duplicates(again)
    assert (made.examples.tolist(), removed) == ([0, 0], 1)


def test_causal_splits_and_packs(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(None)
    examples = [{"text": "The answer is yes. " * n} for n in (1, 40, 3)]
    data = prepare(hooks, CausalDataConfig(sources=(ListSource("rows", examples),), max_length=32), tokenizer)
    report = data.report["train"]
    assert report["rows_kept"] == 3 and report["rows_split"] == 1
    assert report["rows_too_long"] == report["rows_cut"] == 0 and not data.report["warnings"]
    assert report["tokens_in"] == report["tokens_kept"] + report["tokens_dropped"] and report["tokens_dropped"] < 32
    ids = np.concatenate([data.train[i]["input_ids"] for i in range(len(data.train))])
    assert (ids == tokenizer.bos_token_id).sum() == (ids == tokenizer.eos_token_id).sum() == 3


def test_errors_name_source_and_example(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    config = SFTDataConfig(sources=(ListSource("org/set", [EXAMPLES[0], {"prompt": "x"}]),))
    with pytest.raises(DataError, match=facts("org/set", " 1: ", "columns prompt", "'messages'")):
        prepare(hooks, config, make_tokenizer("chatml"))


@pytest.mark.parametrize(
    ("source", "message"),
    [(ListSource("org/set", []), facts("org/set", "split")), ("a name", facts("str: ", "no plugin", "a str;"))],
)
def test_sources_without_examples(hooks: Any, make_tokenizer: Callable[..., Any], source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(hooks, SFTDataConfig(sources=(source,)), make_tokenizer("chatml"))


def test_lost_tokens_are_a_warning(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    config = SFTDataConfig(
        sources=(ListSource("rows", [*EXAMPLES, *BAD]),), max_length=128, overflow="drop", on_empty="drop"
    )
    data = prepare(hooks, config, make_tokenizer("chatml"))
    (warning,) = data.report["warnings"]
    assert re.search(facts("2 of 42", "dropped", "0 tokens truncated", "1 ", "max_length 128"), warning)


BAD = [{"messages": [{"role": "user", "content": "Hello"}]}, conversation("What?", "no " * 300)]


def test_what_the_recipe_does_not_decide_is_dropped_and_shown(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    sources = (ListSource("good", EXAMPLES[:20]), ListSource("some bad", [*EXAMPLES[20:], *BAD]))
    data = prepare(hooks, SFTDataConfig(sources=sources, max_length=128), make_tokenizer("chatml"))
    (warning,) = data.report["warnings"]
    assert re.search(facts("2 of 42", "data.max_length: ", "data.overflow:", "some bad, example 20"), warning)
    assert len(data.train) == data.report["train"]["rows_kept"] == 40


def test_above_the_share_the_run_stops(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    few = ListSource("few", [*EXAMPLES[:10], *BAD])
    config = SFTDataConfig(sources=(few,), max_length=128)
    said = facts("data.sources", "1 of 12", "data.max_length: ", "1 of 12", "few, example 10", "data.max_dropped")
    with pytest.raises(DataError, match=said):
        prepare(hooks, config, tokenizer)
    for more in ({"max_dropped": 0.2}, {"overflow": "drop", "on_empty": "drop"}):
        assert len(prepare(hooks, attrs.evolve(config, **more), tokenizer).train) == 10


def test_each_evaluation_set_is_judged_by_itself(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    sources, tokenizer = (ListSource("many", EXAMPLES * 3),), make_tokenizer("chatml")
    held = (ListSource("fine", EXAMPLES[:20]), ListSource("bad", [*EXAMPLES[:5], BAD[0]]))
    config = SFTDataConfig(sources=sources, eval_sources=held, max_length=128)
    with pytest.raises(DataError, match=facts("evaluation set 'bad'", "1 of 6", "example 5", "data.on_empty: drop")):
        prepare(hooks, config, tokenizer)
    data = prepare(hooks, attrs.evolve(config, max_dropped=0.17), tokenizer)
    assert len(data.evaluation["bad"]) == 5
    assert any(re.search(facts("evaluation set 'bad'", "1 of 6"), warning) for warning in data.report["warnings"])


def test_a_run_that_never_trains_the_end_of_a_turn_warns(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    template = make_tokenizer("generation").chat_template
    forgetful = template.replace("'<|im_end|>\n' }}{% endgeneration %}", "'' }}{% endgeneration %}{{ '<|im_end|>\n' }}")
    assert forgetful != template
    for source, warned in ((template, False), (forgetful, True)):
        data = prepare(hooks, SFTDataConfig(sources=(ListSource("rows", EXAMPLES),)), make_tokenizer(source))
        assert any("end-of-turn" in warning for warning in data.report["warnings"]) == warned
    config = SFTDataConfig(sources=(ListSource("rows", EXAMPLES),), train_on="all")  # with the line break after it
    assert not any(
        "end-of-turn" in said for said in prepare(hooks, config, make_tokenizer("chatml")).report["warnings"]
    )


def test_text_without_the_tokenizers_chat_template_is_reported(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    rows = [{"question": f"What is {n}?", "answer": "A number."} for n in range(3)]
    columns = {"prompt": "question", "completion": "answer"}

    def warned(template: str | None, **options: Any) -> list[str]:
        tokenizer = make_tokenizer(template or "chatml")
        if template is None:
            tokenizer.chat_template = None
        data = prepare(hooks, SFTDataConfig(sources=(ListSource("rows", rows),), **options), tokenizer)
        return [said for said in data.report["warnings"] if "chat template" in said]

    (said,) = warned("chatml", columns=columns)
    assert re.search(facts("rows: write `data.role_mapping: {user: question, assistant: answer}`"), said)
    assert not warned("chatml", columns=columns, format="prompt_completion") and not warned(None, columns=columns)
    assert not warned("chatml", role_mapping={"user": "question", "assistant": "answer"})


def test_an_example_that_lacks_a_column_is_named(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    rows = [{"prompt": "a"}, {"prompt": "a", "completion": "b"}]
    with pytest.raises(
        DataError, match=facts("rows, example 0: ", "no 'completion'", "example 1", "prompt_completion")
    ):
        prepare(hooks, SFTDataConfig(sources=(ListSource("rows", rows),)), make_tokenizer("chatml"))


@pytest.mark.parametrize(("limit", "expected"), [(64, 64), (int(1e30), 8192)])
def test_max_length_comes_from_the_tokenizer(
    hooks: Any, make_tokenizer: Callable[..., Any], limit: int, expected: int
) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.model_max_length = limit
    data = prepare(hooks, SFTDataConfig(sources=(ListSource("rows", EXAMPLES),)), tokenizer)
    assert data.report["max_length"] == expected


def test_rendering_and_packing_are_hooks(make_tokenizer: Callable[..., Any]) -> None:
    class Upper:
        @hookimpl
        def render_example(self, example: Any) -> Rendered | None:
            return Rendered(example["shout"].upper(), ((0, 5),)) if "shout" in example else None

    class OneEach:
        @hookimpl
        def pack_sequences(self, lengths: Sequence[int]) -> list[list[int]]:
            return [[index] for index in range(len(lengths))]

    tokenizer = make_tokenizer("chatml")
    config = SFTDataConfig(sources=(ListSource("rows", [{"shout": "Hello there!"}, EXAMPLES[0]]),), pack_samples=True)
    data = prepare(make_hooks(Upper(), OneEach()), config, tokenizer)
    assert len(data.train) == 2 and tokenizer.decode(data.train[0]["input_ids"]) == "HELLO THERE!"

    class Loser:
        @hookimpl
        def pack_sequences(self) -> list[list[int]]:
            return [[0]]

    with pytest.raises(DataError, match=facts("pack_sequences", "document 1", "0 bins")):
        prepare(make_hooks(Loser()), attrs.evolve(config, sources=(ListSource("rows", EXAMPLES[:2]),)), tokenizer)


def test_slow_tokenizers_are_refused(hooks: Any) -> None:
    with pytest.raises(DataError, match=facts("tokenizer", "object", "tokenizer.json")):
        prepare(hooks, SFTDataConfig(sources=(ListSource("rows", EXAMPLES),)), object())


def test_a_tokenizer_that_would_truncate(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    expected = prepare(hooks, SFTDataConfig(sources=(ListSource("rows", EXAMPLES),)), tokenizer).fingerprint
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert prepare(hooks, SFTDataConfig(sources=(ListSource("rows", EXAMPLES),)), tokenizer).fingerprint == expected


@pytest.mark.parametrize("num_proc", [1, 2])
def test_sequences_of_an_example_stay_together(hooks: Any, make_tokenizer: Callable[..., Any], num_proc: int) -> None:
    """Several answers of a conversation share its beginning, so that no other set may have one of them."""
    tokenizer = make_tokenizer("chatml")
    talks = [{"messages": conversation(f"What is {i}?", "yes")["messages"] * (1 + i % 3)} for i in range(12)]
    source = ListSource("rows", talks)
    config = SFTDataConfig(
        sources=(source,), reasoning_turns="split", train_eval_split=(0.7, 0.3), max_length=128, num_proc=num_proc
    )
    data = prepare(hooks, config, tokenizer)
    sets = [
        [tokenizer.decode(made[i]["input_ids"]) for i in range(len(made))]
        for made in (data.train, data.evaluation["eval"])
    ]
    assert sum(map(len, sets)) == sum(1 + i % 3 for i in range(12)) == 24
    asked = [{re.findall(r"What is \d+", text)[0] for text in texts} for texts in sets]
    assert len(asked[1]) == 4 and not asked[0] & asked[1]
    assert (data.report["train"]["rows_in"], data.report["evaluation"]["eval"]["rows_in"]) == (8, 4)
    weighted = attrs.evolve(config, train_eval_split=(1.0, 0.0), sources=(source, ListSource("other", talks)))
    report = prepare(hooks, weighted, tokenizer).report
    assert report["train"]["rows_in"] == 24 and report["sources"][0]["rows"] == 12


def test_a_warning_about_a_dropped_part_keeps_its_remedy_whole(hooks: Any, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    examples = [conversation("What is </s>?", "yes")]
    data = prepare(hooks, SFTDataConfig(sources=(ListSource("rows", examples),), max_length=128), tokenizer)
    (warning,) = data.report["warnings"]
    assert warning.startswith("rows: its text holds special tokens such as </s>")
    assert "`data.special_tokens_in_text: plain`" in warning
    assert warning.endswith("(1 times, first in example 0, messages[0] user)")


def test_a_plan_does_not_have_sources_read_to_identify_them(make_tokenizer: Callable[..., Any], tmp_path: Any) -> None:
    seen = []

    class Plans:
        @hookimpl
        def make_tokenizer(self) -> Any:
            return make_tokenizer("chatml")

        @hookimpl
        def fingerprint_source(self, quick: bool) -> None:
            seen.append(quick)

    hooks = make_hooks(Plans())
    source = ListSource(".", EXAMPLES)
    config = SFTDataConfig(sources=(source,), cache_dir=tmp_path)
    recipe: Any = SimpleNamespace(tokenizer=source, model=None)
    assert hooks.estimate_data(config=config, recipe=recipe, world=World(), hooks=hooks) is not None and seen == [True]
    hooks.make_data(config=config, tokenizer=make_tokenizer("chatml"), world=World(), hooks=hooks, recipe=recipe)
    assert seen == [True, False]
