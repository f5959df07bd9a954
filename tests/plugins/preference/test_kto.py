"""Runs of ``type: kto``: labels, the estimate of the KL divergence, metrics by label, resume, and TRL's numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hooktrain_preference import KTOLoss, KTOLossConfig, collate_unpaired

from hooktrain import DataError, RecipeError, Trainer
from hooktrain.testing import Recorder, make_llama, make_tokenizer
from tests.plugins.preference.beside_trl import trl_lines
from tests.plugins.preference.conftest import PAIRS

Run = Callable[..., Trainer]
METRICS = (
    *("loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"),
    *("grad_norm", "answers"),
)


def unpaired() -> list[dict[str, Any]]:
    """Eight prompts of text with one answer each, every third of which is undesirable."""
    return [
        {"prompt": f"{prompt}\n", "completion": rejected if number % 3 == 1 else chosen, "label": number % 3 != 1}
        for number, (prompt, chosen, rejected) in enumerate(PAIRS)
    ]


@pytest.fixture
def answers(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``answers(rows, key=value)``: the section ``data`` of answers, in their order."""

    def made(rows: list[dict[str, Any]] | None = None, **data: Any) -> dict[str, Any]:
        path = tmp_path / f"unpaired-{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in (unpaired() if rows is None else rows)))
        return {"sources": [str(path)], "max_length": 96, "shuffle": False, **data}

    return made


def run_recorded(run: Run, **changes: Any) -> tuple[Trainer, list[dict[str, float]]]:
    recorder = Recorder()
    return run(recorder, type="kto", **changes), recorder.metrics


# ------------------------------------------------------------------------------------------------------------- data

TURNS = [{"role": "user", "content": "What is it?"}]
ANSWER = [{"role": "assistant", "content": "It is."}]

FORMATS: Mapping[str, tuple[dict[str, Any], list[float]]] = {
    "text": ({"prompt": "What? ", "completion": "It is.", "label": True}, [1]),
    "messages": ({"prompt": TURNS, "completion": ANSWER, "label": False}, [0]),
    "a label of text": ({"prompt": TURNS, "completion": ANSWER, "label": "False"}, [0]),
    "a label of 1": ({"prompt": TURNS, "completion": ANSWER, "label": 1}, [1]),
    "a conversation": ({"messages": TURNS + ANSWER, "label": False}, [0]),
    "an answer of text": ({"prompt": TURNS, "completion": "It is.", "label": True}, [1]),
    "a prompt of text": ({"prompt": "What is it?", "completion": ANSWER, "label": True}, [1]),
    "a pair": ({"prompt": TURNS, "chosen": ANSWER, "rejected": [{**ANSWER[0], "content": "No."}]}, [1, 0]),
}


@pytest.mark.parametrize(("example", "labels"), FORMATS.values(), ids=FORMATS)
def test_formats(prepare: Callable[..., Any], example: dict[str, Any], labels: list[float]) -> None:
    data = prepare([example], type="kto")
    assert len(data.train) == len(labels)
    batch = data.collate([data.train[number] for number in range(len(data.train))])
    assert batch["desirable"].tolist() == [bool(label) for label in labels]
    assert batch["label_counts"] == (sum(labels), len(labels) - sum(labels)) and "token_weights" not in batch
    assert all(batch["answer_lengths"]) and batch["denominator"] == len(labels) and batch["counts"] == "answers"


ERRORS: Mapping[str, tuple[dict[str, Any], str]] = {
    "a label that is none": (
        {"prompt": "What?", "completion": "It is.", "label": "maybe"},
        r"example 0.*: label is 'maybe', expected true for a desirable answer and false for another",
    ),
    "a label of 2": ({"prompt": "What?", "completion": "It is.", "label": 2}, r"label is 2, expected true"),
    "no label": (
        {"prompt": "What?", "completion": "It is.", "label": None},
        r"label is missing, expected true .* `data.columns: \{label: ...\}`",
    ),
    "no column of labels": (
        {"prompt": "What?", "completion": "It is."},
        r"given the columns prompt, completion, expected 'prompt', 'completion' and 'label'.*; label missing",
    ),
    "no prompt": ({"completion": "It is.", "label": True}, r"prompt is missing, expected text or a list of"),
    "a question as an answer": (
        {"prompt": TURNS, "completion": [{"role": "user", "content": "Is it?"}], "label": True},
        r"completion begins with a message of user \('Is it\?'\) that is not the prompt's, expected an answer",
    ),
    "a conversation without an answer": (
        {"messages": TURNS + TURNS, "label": True},
        r"messages ends with a message of user, expected a conversation that ends with an answer",
    ),
}


@pytest.mark.parametrize(("example", "text"), ERRORS.values(), ids=ERRORS)
def test_errors_name_what_is_wrong(prepare: Callable[..., Any], example: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        prepare([example], type="kto")


def test_empty_answers_are_dropped_and_counted(prepare: Callable[..., Any]) -> None:
    rows = [*unpaired(), {"prompt": "What? ", "completion": " ", "label": True}]
    with pytest.raises(DataError, match=r"in 1 of 9 examples the completion is empty.*`data.on_empty: drop`"):
        prepare(rows, type="kto", max_dropped=0.0)
    data = prepare(rows, type="kto", on_empty="drop")
    assert len(data.train) == 8 and data.report["train"]["rows_empty"] == 1


def test_each_prompt_gets_the_answer_before_its_own(prepare: Callable[..., Any]) -> None:
    data, tokenizer = prepare(unpaired()[:3], type="kto"), make_tokenizer()
    other = data.collate([data.train[number] for number in range(3)])["mismatched"]
    texts = [tokenizer.decode(ids) for ids in other["input_ids"][0].split(other["document_lengths"])]
    rows = unpaired()[:3]
    given = [f"{row['prompt']}{rows[number - 1]['completion']}<|endoftext|>" for number, row in enumerate(rows)]
    assert texts == given
    assert "mismatched" not in data.collate([data.train[0]])


# ------------------------------------------------------------------------------------------------------------- loss


def document(seed: int, desirable: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    prompt, answer = (torch.randint(3, 290, (size,), generator=generator).numpy() for size in (3 + seed, 4))
    labels = np.concatenate([np.full_like(prompt, -100), answer])
    weights = np.where(labels == -100, 0, 1.0 if desirable else 0.5).astype(np.float32)
    ids = np.concatenate([prompt, answer])
    return {"input_ids": ids, "labels": labels, "position_ids": np.arange(len(ids)), "token_weights": weights}


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_the_loss_is_that_of_the_paper(loss_type: Any) -> None:
    model = make_llama(make_tokenizer()).double()
    config = KTOLossConfig(loss_type=loss_type, beta=0.3, desirable_weight=2.0, undesirable_weight=0.7)
    batch = collate_unpaired([document(1, True), document(2, False), document(3, True)])
    reference = torch.tensor([-20.0, -25.0, -30.0], dtype=torch.float64)
    noted: list[Any] = []
    loss = KTOLoss(config, lambda *values: noted.append(values))
    found = loss(model, {**batch, "reference_log_probs": reference, "kl": torch.tensor(0.4)}, 3.0)
    parts = zip(batch["input_ids"][0].split(batch["document_lengths"]), batch["answer_lengths"], strict=True)
    log_probs = []
    for ids, length in parts:
        logits = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        log_probs.append(logits.gather(1, ids[1:, None])[-length:, 0].sum())
    ratios = torch.stack(log_probs) - reference
    if loss_type == "kto":
        values = [torch.sigmoid(0.3 * (ratios - 0.4)), torch.sigmoid(0.3 * (0.4 - ratios))]
    else:
        values = [torch.sigmoid(0.3 * ratios), 1 - torch.sigmoid(0.3 * ratios)]
    expected = 2.0 * (1 - values[0][0]) + 0.7 * (1 - values[1][1]) + 2.0 * (1 - values[0][2])
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-6) and found.counts == "answers"
    ours, theirs = (torch.autograd.grad(each, list(model.parameters())) for each in (found.total, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm()) <= 1e-6 * float(other.norm()) + 1e-12
    torch.testing.assert_close(noted[0][1], 0.3 * ratios.detach())


def test_metrics_are_means_over_the_answers_of_a_label(run: Run, answers: Any) -> None:
    data = answers()
    trainer, lines = run_recorded(run, data={**data, "eval_sources": data["sources"]}, eval_interval=2, train_iters=2)
    (name,) = trainer.data.evaluation
    assert lines[0]["rewards/chosen"] == lines[0]["rewards/rejected"] == 0, "the model is its own reference at first"
    last = lines[-1]
    rewards = {label: last[f"eval/{name}/rewards/{label}"] for label in ("chosen", "rejected")}
    assert last[f"eval/{name}/rewards/margins"] == pytest.approx(rewards["chosen"] - rewards["rejected"])
    reference = {label: last[f"eval/{name}/logps/{label}"] - rewards[label] / 0.1 for label in rewards}
    start = {label: [] for label in rewards}  # type: ignore[var-annotated]
    for line in lines[:1]:
        for label in rewards:
            start[label].append(line[f"logps/{label}"])
    assert all(value < 0 for value in reference.values()) and last["answers"] == 8
    assert rewards["chosen"] > rewards["rejected"]


def test_labels_without_an_answer_have_no_metrics(run: Run, answers: Any) -> None:
    rows = [row for row in unpaired() if row["label"]]
    _, lines = run_recorded(run, data=answers(rows), train_iters=1, loss={"loss_type": "apo_zero_unpaired"})
    assert "rewards/chosen" in lines[0] and "rewards/rejected" not in lines[0] and "rewards/margins" not in lines[0]
    assert "kl" not in lines[0]


def test_a_resume_between_two_lines_repeats_the_run_bit_by_bit(run: Run, answers: Any, tmp_path: Path) -> None:
    changes = {"data": answers(), "checkpoint": [{"type": "full", "save_every_n_steps": 3}], "train_iters": 4}
    one, expected = run_recorded(run, **changes, log_interval=2)
    path = tmp_path / "run/checkpoints/step-00000003"
    again = {"run_dir": str(tmp_path / "again"), "trainer": {"resume_from": path}}
    two, found = run_recorded(run, **changes, log_interval=2, **again)
    assert {name: found[-1][name] for name in METRICS} == {name: expected[-1][name] for name in METRICS}
    for (name, weight), (_, other) in zip(one.model.named_parameters(), two.model.named_parameters(), strict=True):
        assert torch.equal(weight, other), name


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"micro_batch_size": 1}, r"micro_batch_size: given 1, with which no answer can be put behind another prompt"),
        ({"models": {"reference": {"precompute": True}}}, r"precompute: given true with loss.loss_type kto"),
        ({"type": "preference", "loss": {"type": "kto"}}, r"needs answers with labels; write `type: kto`"),
        ({"loss": {"desirable_weight": 0}}, r"loss.desirable_weight: given 0.*expected more than 0"),
    ],
    ids=["alone", "precompute", "pairs", "weight"],
)
def test_refused(run: Run, answers: Any, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        run(**{"type": "kto", "data": answers(), **changes})


@pytest.mark.thorough
def test_two_ranks_estimate_one_kl(run: Run, answers: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    """Each rank's answers meet prompts of that rank; the estimate is that of both, and the same on both."""
    path = tmp_path / "kto-ranks.yaml"
    changed = {"type": "kto", "data": answers(), "micro_batch_size": 2, "run_dir": str(tmp_path / "ranks")}
    path.write_text(yaml.safe_dump({**recipe, **changed, "train_iters": 4}))
    command = [sys.executable, "-m", "hooktrain", "train", str(path), "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "ranks/metrics.jsonl").read_text().splitlines()]
    alone = run_recorded(run, data=answers(), train_iters=1)[1]
    for name in ("rewards/chosen", "logps/chosen", "logps/rejected", "loss"):
        assert lines[0][name] == pytest.approx(alone[0][name], abs=1e-5), name
    assert len(lines) == 4 and lines[-1]["rewards/margins"] > 0 and all(line["kl"] >= 0 for line in lines)


@pytest.mark.thorough
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_losses_and_rewards_are_those_of_trl(
    run: Run, answers: Any, tmp_path: Path, tiny_llama: Path, loss_type: str
) -> None:
    """Ten steps on the same answers in the same order, in float32."""
    from transformers import AutoModelForCausalLM
    from trl import KTOConfig, KTOTrainer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    more = {"loss_type": loss_type, "beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.8}
    expected = trl_lines(KTOTrainer, KTOConfig, model, tiny_llama, unpaired(), tmp_path / "trl", **more)
    _, lines = run_recorded(
        run,
        data=answers(),
        train_iters=10,
        loss={"loss_type": loss_type, "desirable_weight": 1.5, "undesirable_weight": 0.8},
        gradient_clipping=1.0,
        optimizer={"lr": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.999]},
    )
    assert len(lines) == len(expected) == 10
    names = [name for name in METRICS if name in lines[0] and name not in ("grad_norm", "answers", "loss")]
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5), line["step"]
        for name in names:
            assert line[name] == pytest.approx(other[name], abs=2e-5, rel=1e-5), (line["step"], name)


def test_reference_copies_are_frozen(run: Run, answers: Any) -> None:
    trainer, lines = run_recorded(run, data=answers())
    assert set(trainer.models) == {"reference"} and lines[-1]["loss"] < lines[0]["loss"]
