"""Metrics in runs: over logits, which nobody keeps, and over answers, against a plain loop."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_evals import exact_match, rouge_l

from hooktrain import HooktrainError, PluginError, RecipeError, hookimpl
from tests.facts import facts

Run = Callable[..., Any]
ANSWERS = {"eval_metrics": ["exact_match", "rouge_l"], "eval_generation": {"max_new_tokens": 12, "batch_size": 4}}


def last(trainer: Any) -> dict[str, float]:
    return {n: v for line in trainer.history for n, v in line.items() if n.startswith("eval/")}


def conversations(trainer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Prompt and answer of each conversation, rendered without this project's code."""
    tokenizer = trainer.tokenizer
    for line in Path(trainer.recipe.as_dict()["data"]["eval_sources"][0]["name_or_path"]).read_text().splitlines():
        messages = json.loads(line)["messages"]
        texts = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        answer = messages[1]["content"] + "<|im_end|>"
        yield (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (texts, answer))  # type: ignore[misc]


@pytest.mark.parametrize("packed", [True, False])
def test_answers_are_those_of_a_plain_greedy_loop(run_chat: Run, chat_recipe: dict[str, Any], packed: bool) -> None:
    """One token after the other, from the trained model; batches of four and of two."""
    trainer = run_chat(
        **ANSWERS, train_iters=60, optimizer={"lr": 0.03}, data={**chat_recipe["data"], "pack_samples": packed}
    )
    tokenizer, model = trainer.tokenizer, trainer.model
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    scores = []
    for prompt, answer in conversations(trainer):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and (len(ids) == len(prompt) or ids[-1] not in ends):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        texts = [tokenizer.decode(part, skip_special_tokens=True).strip() for part in (ids[len(prompt) :], answer)]
        scores.append((exact_match(*texts), rouge_l(*texts)))
    found = last(trainer)
    assert found["eval/rows/exact_match"] == pytest.approx(sum(s[0] for s in scores) / 6)
    assert found["eval/rows/rouge_l"] == pytest.approx(sum(s[1] for s in scores) / 6)
    assert 0 < found["eval/rows/rouge_l"] < 1, "neither trivial"


def test_metrics_over_logits_are_those_of_all_logits(run_chat: Run, chat_recipe: dict[str, Any]) -> None:
    metrics = ["perplexity", {"type": "top_k_accuracy", "k": 3}]
    trainer = run_chat(eval_metrics=metrics, eval_micro_batch_size=4, loss={"label_smoothing": 0.1})
    right = tokens = entropy = 0.0
    for prompt, answer in conversations(trainer):
        with torch.no_grad():
            logits = trainer.model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double()
        goal = torch.tensor(answer)
        entropy += float(torch.nn.functional.cross_entropy(logits, goal, reduction="sum"))
        right += int((logits.topk(3).indices == goal[:, None]).any(1).sum())
        tokens += len(answer)
    found = last(trainer)
    assert found["eval/rows/perplexity"] == pytest.approx(math.exp(entropy / tokens), rel=1e-5)
    assert found["eval/rows/top_3_accuracy"] == pytest.approx(right / tokens)


class Chunks:
    """A stranger's metric: how many logits it saw at once, at most, and how many trained tokens there are."""

    @hookimpl
    def register_configs(self) -> Any:
        import attrs

        self.config = attrs.make_class("ChunksConfig", [], frozen=True)
        return {"metric": {"chunks": self.config}}

    @hookimpl
    def make_metric(self, config: Any) -> Any:
        return self if type(config) is self.config else None

    def sum_logits(self, logits: Any, targets: Any) -> Any:
        return {"tokens": torch.tensor(len(targets)), "calls": torch.tensor(1)}

    def result(self, sums: Any) -> Any:
        return {"tokens": sums["tokens"], "calls": sums["calls"]}


def test_a_strangers_metric_gets_logits_in_chunks(run_chat: Run) -> None:
    trainer = run_chat(Chunks(), eval_metrics="chunks", loss={"chunk_size": 5})
    found = last(trainer)
    targets = sum(len(list(answer)) for _, answer in conversations(trainer))
    assert found["eval/rows/tokens"] == targets
    assert found["eval/rows/calls"] >= 1


class Answers(Chunks):
    """A stranger's metric over answers."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def make_metric(self, config: Any) -> Any:
        return _Score(self.seen) if type(config) is self.config else None


class _Score:
    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def score(self, generations: Any) -> dict[str, float]:
        self.seen.append([each.prediction for each in generations])
        assert all(each.prompt.startswith("<|im_start|>user\n") for each in generations)
        return {"answers": len(generations)}


def test_drawn_answers_repeat_and_leave_the_training_as_it_is(run_chat: Run, tmp_path: Path) -> None:
    drawn = {"max_new_tokens": 6, "temperature": 1.5, "top_k": 50}
    losses, texts = [], []
    for name, more in {"a": drawn, "b": drawn, "c": {"max_new_tokens": 6}}.items():
        plugin = Answers()
        trainer = run_chat(
            plugin, eval_metrics=["chunks"], eval_generation=more, eval_interval=1, run_dir=str(tmp_path / name)
        )
        losses.append([line["loss"] for line in trainer.history if "loss" in line])
        texts.append(plugin.seen)
    assert texts[0] == texts[1] != texts[2]
    plain = run_chat(run_dir=str(tmp_path / "plain"))
    assert losses[0] == losses[1] == losses[2] == [line["loss"] for line in plain.history if "loss" in line]


def test_what_cannot_be_measured_is_named(
    run_chat: Run, run_tiny: Run, chat_recipe: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(PluginError, match=facts("eval/rows/exact_match", "different names")):
        run_chat(eval_metrics=["exact_match", {"type": "exact_match", "normalize": False}])
    with pytest.raises(RecipeError, match=facts("eval_metrics[0].type", "'exact_mach'", "exact_match")):
        run_chat(eval_metrics=["exact_mach"])
    with pytest.raises(RecipeError, match=facts("eval_generation.max_new_tokens", "0", "1")):
        run_chat(eval_generation={"max_new_tokens": 0})
    with pytest.raises(HooktrainError, match=facts("TinyModel", "generate_answers")):
        run_tiny(eval_metrics=["exact_match"])
    with pytest.raises(HooktrainError, match=facts("eval_metrics", "type: evaluate", "nowhere", "exist")):
        run_chat(eval_metrics=[{"type": "evaluate", "path": str(tmp_path / "nowhere")}])
    with pytest.raises(PluginError, match=facts("eval_metrics[0]", "sum_logits", "score")):
        run_chat(NoMetric(), eval_metrics=["chunks"])


class NoMetric(Chunks):
    @hookimpl
    def make_metric(self, config: Any) -> Any:
        return object() if type(config) is self.config else None


MEAN_LENGTH = """
import datasets
import evaluate


class MeanLength(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"longer": sum(len(p) > len(r) for p, r in zip(predictions, references)), "answers": len(references)}
"""


def test_a_metric_of_evaluate_from_a_folder(run_chat: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra; without it the error names it."""
    (tmp_path / "lengths").mkdir()
    (tmp_path / "lengths/lengths.py").write_text(MEAN_LENGTH)
    metric = {"type": "evaluate", "path": str(tmp_path / "lengths")}
    found = last(run_chat(eval_metrics=[metric], eval_generation={"max_new_tokens": 20}, train_iters=1))
    assert found["eval/rows/lengths/answers"] == 6 and 0 < found["eval/rows/lengths/longer"] <= 6
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(HooktrainError, match=facts("pip install 'hooktrain-evals[evaluate]'")):
        run_chat(eval_metrics=[metric], run_dir=str(tmp_path / "other"))


def test_a_run_without_metrics_imports_none_of_them(run_cli: Run, tiny_recipe: dict[str, Any]) -> None:
    source = "import sys\n@hookimpl\ndef on_train_end(trainer):\n    print(sorted(m for m in sys.modules if m.startswith('hooktrain_evals.')))\n"
    done = run_cli("train", tiny_recipe, source=source)
    assert done.status == 0, done.output
    assert "['hooktrain_evals.config', 'hooktrain_evals.plugin']" in done.stdout


def test_the_best_checkpoint_by_a_metric(run_chat: Run) -> None:
    """A metric is watched like a loss."""
    save = {"type": "full", "save_best": "eval/rows/rouge_l", "save_best_mode": "max"}
    trainer = run_chat(**ANSWERS, eval_interval=1, checkpoint=[save])
    values = {line["step"]: line["eval/rows/rouge_l"] for line in trainer.history if "eval/rows/rouge_l" in line}
    best = max(values, key=lambda step: (values[step], -step))
    assert (trainer.run_dir / f"checkpoints/step-{best:08d}").is_dir()
