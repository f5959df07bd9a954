"""The ``deepspeed`` strategy: real engines on one rank and on two, compared with plain PyTorch."""

from __future__ import annotations

import gc
import json
import os
import re
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from hooktrain import HooktrainError, HooktrainWarning, RecipeError, StrategyDefaults, Trainer, hookimpl, load, member
from hooktrain.inspection.plan import plan_of
from hooktrain.inspection.value_origins import Sources
from hooktrain.testing import Recorder, TinyPlugin
from hooktrain.training.load import make_host
from tests.facts import facts
from tests.launching import alone, assert_equal_runs, stored_weights, weights_at
from tests.plugins.deepspeed.zero import COMMON, SAVE, zero

STAGES = [*(pytest.param(stage, marks=pytest.mark.thorough) for stage in (0, 1)), 2, 3]
"""Stages 1 and 2 are one class of DeepSpeed's, and stage 0 is shown where all are."""
MOST = [*(pytest.param(stage, marks=pytest.mark.thorough) for stage in (0, 1, 2)), 3]
"""For what stage 2 shows in another test of the default tier."""


def losses(recorder: Recorder) -> list[float]:
    return [line.get("loss", 0.0) for line in recorder.metrics]  # a step without supervised tokens has none


# ------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("stage", [0, *STAGES[1:]])
def test_one_rank_trains_as_plain_torch_does(run_tiny, stage):
    """Accumulation, ragged masks, a short last accumulation window, clipping, a schedule, decay of matrices only, evaluation."""
    settings = {**COMMON, "gradient_accumulation_steps": 3}
    recorder, reference = Recorder(), Recorder()
    expected = run_tiny(reference, **settings)
    trainer = run_tiny(recorder, strategy=zero(stage), **settings)
    for mine, theirs in zip(recorder.metrics, reference.metrics, strict=True):
        assert mine.keys() == theirs.keys()
        same = [name for name in theirs if name not in ("tokens_per_second", "step_seconds")]
        assert [mine[name] for name in same] == pytest.approx([theirs[name] for name in same], abs=2e-6)
    for name, value in expected.model.state_dict().items():
        found = trainer.model.get_parameter(name)
        if stage < 3:
            torch.testing.assert_close(found, value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_are_one_global_batch(run_ranks, run_tiny, stage):
    """(2, 2, 2) with DeepSpeed is (8, 1, 1) with plain torch: 13 rows in windows of 8 and 5, ragged masks."""
    run = run_ranks(2, gradient_accumulation_steps=2, strategy=zero(stage), checkpoint=SAVE, **COMMON)
    assert_equal_runs(run, *alone(run_tiny, micro_batch_size=8, **COMMON))


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_without_supervised_tokens_changes_nothing(run_tiny, stage):
    """With weight decay and momentum, an update would move the weights although there is no gradient."""

    class WithoutLabels:
        @hookimpl(wrapper=True)
        def make_data(self):
            data = yield
            collate = data.collate

            def mask_some(rows: list[Any]) -> dict[str, Any]:
                batch = collate(rows)
                if 3 in batch["input_ids"]:
                    batch["labels"] = torch.full_like(batch["labels"], -100)
                return batch

            data.collate = mask_some
            return data

    recorder, reference = Recorder(), Recorder()
    run_tiny(WithoutLabels(), reference, micro_batch_size=1, **COMMON)
    run_tiny(WithoutLabels(), recorder, micro_batch_size=1, strategy=zero(stage), **COMMON)
    assert reference.metrics[-1]["skipped_steps"] > 2
    assert recorder.metrics[-1]["skipped_steps"] == reference.metrics[-1]["skipped_steps"]
    assert losses(recorder) == pytest.approx(losses(reference), abs=2e-6)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_updates_as_one_that_is_not(run_tiny, stage):
    recorder, reference = Recorder(), Recorder()
    run_tiny(reference, gradient_accumulation_steps=2, **COMMON)
    run_tiny(recorder, gradient_accumulation_steps=2, strategy=zero(stage, offload="optimizer"), **COMMON)
    assert losses(recorder) == pytest.approx(losses(reference), abs=2e-6)


@pytest.mark.parametrize("stage", MOST)
def test_bf16_follows_fp32(run_tiny, tmp_path, stage):
    """From common weights: stage 3 builds the model in bf16, so random weights are others."""
    recorder, reference = Recorder(), Recorder()
    run_tiny(reference, checkpoint=SAVE, **COMMON)
    resume = {"resume_from": tmp_path / "run" / "checkpoints" / "step-00000003"}
    more = {"allow_changes": ["strategy.dtype"], "trainer": resume, **COMMON}
    run_tiny(recorder, strategy=zero(stage, dtype="bf16"), checkpoint=SAVE, **more)
    assert losses(recorder) != losses(reference)[3:]
    assert losses(recorder) == pytest.approx(losses(reference)[3:], rel=0.02)


@pytest.mark.parametrize("stage", [0, 3])
def test_what_others_read_of_a_strategy(run_tiny, stage):
    """Callbacks and samples ask which precision it computes in, and whether a rank holds only shards of the weights."""
    strategy = run_tiny(strategy=zero(stage, dtype="bf16"), train_iters=1).strategy
    assert member(strategy, StrategyDefaults, "dtype") is torch.bfloat16
    assert member(strategy, StrategyDefaults, "shards_weights") == (stage == 3)
    assert member(object(), StrategyDefaults, "shards_weights") is False, "a strategy need not say it"


# ------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_resume_repeats_the_undisturbed_run(run_tiny, tmp_path, stage, dtype):
    settings = {**COMMON, "model": {"dropout": 0.3}, "checkpoint": SAVE, "gradient_accumulation_steps": 2}
    recorder, rest = Recorder(), Recorder()
    strategy = zero(stage, dtype=dtype)
    run_tiny(recorder, strategy=strategy, **settings)
    checkpoints = tmp_path / "run" / "checkpoints"
    resume = {"resume_from": checkpoints / "step-00000003"}
    run_tiny(rest, strategy=strategy, trainer=resume, run_dir=str(tmp_path / "rest"), **settings)
    assert losses(rest) == losses(recorder)[3:]
    for kind in ("model", "optimizer"):
        undisturbed = stored_weights(checkpoints / "step-00000008", kind)
        again = stored_weights(tmp_path / "rest" / "checkpoints" / "step-00000008", kind)
        assert undisturbed.keys() == again.keys()
        assert all(torch.equal(undisturbed[name], again[name]) for name in undisturbed)


@pytest.mark.parametrize("stage", MOST)
def test_an_optimizer_that_the_recipe_changes_resumes_as_changed(run_tiny, tmp_path, stage):
    """As under plain torch; and not as it was, which the checkpoint holds."""
    given = {"lr": 0.03, "weight_decay": 0.5, "betas": [0.5, 0.6]}
    resume = {"resume_from": tmp_path / "run" / "checkpoints" / "step-00000003"}
    more = {**COMMON, "checkpoint": SAVE, "allow_changes": ["optimizer"], "trainer": resume}
    before, plain, changed = Recorder(), Recorder(), Recorder()
    run_tiny(before, strategy=zero(stage), **{**COMMON, "checkpoint": SAVE})
    run_tiny(plain, run_dir=str(tmp_path / "plain"), **{**more, "optimizer": {**COMMON.get("optimizer", {}), **given}})
    strategy = {"strategy": zero(stage), "run_dir": str(tmp_path / "changed")}
    run_tiny(changed, **{**more, **strategy, "optimizer": {**COMMON.get("optimizer", {}), **given}})
    assert losses(changed) == pytest.approx(losses(plain), abs=2e-6)
    assert losses(changed)[1:] != pytest.approx(losses(before)[4:], abs=1e-4)


@pytest.mark.parametrize("stage", MOST)
def test_two_ranks_resume_bit_by_bit(run_ranks, run_tiny, tmp_path, stage):
    settings = {**COMMON, "checkpoint": SAVE}
    undisturbed = run_ranks(2, strategy=zero(stage), micro_batch_size=1, model={"dropout": 0.3}, **settings)
    assert undisturbed.status == 0, undisturbed.output
    path = undisturbed.folder / "checkpoints" / "step-00000003"
    words = ["--resume", str(path)]
    more = {"micro_batch_size": 1, "model": {"dropout": 0.3}, "run_dir": str(tmp_path / "rest"), **settings}
    rest = run_ranks(2, words=words, strategy=zero(stage), **more).of(tmp_path / "rest")
    assert rest.status == 0, rest.output
    assert [line["loss"] for line in rest.metrics] == [line["loss"] for line in undisturbed.metrics][3:]
    last = len(undisturbed.metrics)
    for name, value in weights_at(undisturbed, last).items():
        assert torch.equal(value, weights_at(rest, last)[name])


@pytest.mark.parametrize("stage", MOST)
def test_any_strategy_resumes_from_any_others_checkpoint(run_ranks, run_tiny, tmp_path, stage):
    """Two ranks of DeepSpeed resume from one of plain torch, one of torch from them, and nothing is lost on the way."""
    settings = {**COMMON, "checkpoint": SAVE, "micro_batch_size": 4}
    reference = Recorder()
    run_tiny(reference, **settings)
    words = ["--resume", str(tmp_path / "run" / "checkpoints" / "step-00000003")]
    more = {**settings, "micro_batch_size": 2, "run_dir": str(tmp_path / "two")}
    two = run_ranks(2, words=words, strategy=zero(stage), **more).of(tmp_path / "two")
    assert two.status == 0, two.output
    assert [line["loss"] for line in two.metrics] == pytest.approx(losses(reference)[3:], abs=2e-6)
    path = tmp_path / "two" / "checkpoints" / "step-00000006"
    back = Recorder()
    run_tiny(back, trainer={"resume_from": path}, run_dir=str(tmp_path / "back"), **settings)
    assert losses(back) == pytest.approx(losses(reference)[6:], abs=2e-6)


# --------------------------------------------------------------------------------------------------- recipe


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"zero_stage": 4}, ["strategy.zero_stage", "given 4", "0, 1, 2 or 3"]),
        (
            {"zero_stage": 1, "config": {"zero_optimization": {"stage": 2}}},
            ["strategy.config.zero_optimization.stage", "given 2", "strategy.zero_stage", " 1"],
        ),
        (
            {"config": {"gradient_accumulation_steps": 7}},
            ["strategy.config.gradient_accumulation_steps", "given 7", " gradient_accumulation_steps", " 1"],
        ),
        ({"config": {"optimizer": {"type": "Adam"}}}, ["strategy.config.optimizer:", "remove it"]),
        ({"zero_stage": 2, "offload": "all"}, ["strategy.offload", "given all", "stage 2", "stage 3"]),
        (
            {"dtype": "fp32", "config": {"bf16": {"enabled": True}}},
            ["strategy.config.bf16.enabled", "given True", "dtype", "fp32"],
        ),
    ],
)
def test_a_config_that_contradicts_the_recipe(run_tiny, strategy, message):
    with pytest.raises(RecipeError) as caught:
        run_tiny(strategy={"type": "deepspeed", "device": "cpu", **strategy})
    assert re.search(facts(*message), str(caught.value))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"zero_optimization": {"stage": 7}},
            ["strategy.config.zero_optimization.stage", "given 7", "0, 1, 2 or 3"],
        ),
        (
            {"zero_optimization": {"overlap_com": True}},
            ["strategy.config.zero_optimization.overlap_com:", "'overlap_comm'"],
        ),
        (
            {"zero_optimization": {"allgather_bucket_size": "big"}},
            ["strategy.config.zero_optimization.allgather_bucket_size", "given 'big'", "input should be"],
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": "big"}},
            ["strategy.config.zero_optimization.reduce_bucket_size", "given 'big'", "auto"],
        ),
        (
            {"zero_optimization": {"offload_optimizer": "cpu"}},
            ["strategy.config.zero_optimization.offload_optimizer", "given 'cpu'", "{device: cpu}"],
        ),
        (
            {"zero_optimizatoin": {"stage": 2}},
            ["strategy.config.zero_optimizatoin:", "'zero_optimization'"],
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            ["strategy.config.zero_optimization.offload_optimizer.device", "given nvme", "cpu or none"],
        ),
    ],
)
def test_keys_that_deepspeed_refuses_or_never_reads(run_tiny, tmp_path, config, message):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(config))
    for given in (config, str(path)):
        with pytest.raises(RecipeError) as caught:
            run_tiny(strategy={"type": "deepspeed", "device": "cpu", "config": given})
        assert re.search(facts(*message), str(caught.value))
        assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("section", [{"reduce_bucket_size": "big"}, {"offload_param": "cpu"}])
def test_plan_refuses_what_a_run_would(tiny_recipe, section):
    strategy = {"type": "deepspeed", "device": "cpu", "config": {"zero_optimization": {"stage": 3, **section}}}
    host = make_host()
    host.register(TinyPlugin())
    facts = plan_of(host, Sources(file=None, raw={**tiny_recipe, "strategy": strategy}))
    assert [each["where"] for each in facts["complaints"]] == [
        f"strategy.config.zero_optimization.{next(iter(section))}"
    ]


def test_errors_are_headed_with_the_recipes_file(tiny_recipe, tmp_path):
    strategy = {"type": "deepspeed", "device": "cpu", "config": {"zero_optimization": {"overlap_com": True}}}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({**tiny_recipe, "strategy": strategy}))
    with pytest.raises(RecipeError, match=rf"(?s)^{re.escape(str(path))}: 1 .*overlap_com:"):
        Trainer(*load(path, plugins=[TinyPlugin()])).run()


def test_keys_that_deepspeed_reads_and_one_that_it_does_not(run_tiny):
    config = {
        "wall_clock_breakdown": False,
        "steps_per_print": 10,
        "flops_profiler": {"enabled": False},
        "activation_checkpointing": {"partition_activations": False},
        "communication_data_type": "fp32",
        "comms_logger": {"enabled": False},
        "aio": {"thread_count": 1},
        "zero_allow_untested_optimizer": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", HooktrainWarning)
        run_tiny(strategy={"type": "deepspeed", "device": "cpu", "config": config})
    with pytest.warns(HooktrainWarning, match=facts("strategy.config.made_by_us", "DeepSpeed")):
        run_tiny(strategy={"type": "deepspeed", "device": "cpu", "config": {"made_by_us": "2026"}})


def test_a_configuration_from_a_file(run_tiny, tmp_path):
    """As transformers' users have them: ``auto`` where the recipe knows better."""
    path = tmp_path / "zero.json"
    content = {"zero_optimization": {"stage": 1}, "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"}
    path.write_text(json.dumps(content))
    trainer = run_tiny(strategy={"type": "deepspeed", "device": "cpu", "config": str(path)}, gradient_clipping=0.5)
    assert trainer.strategy.stage == 1
    assert trainer.strategy.settings["gradient_clipping"] == 0.5
    assert trainer.strategy.settings["train_micro_batch_size_per_gpu"] == 2
    for text, message in (("{", "line 1 column 2"), ("[]", "list")):
        path.write_text(text)
        with pytest.raises(HooktrainError, match=facts("strategy.config", f"{path}", "JSON", message)):
            run_tiny(strategy={"type": "deepspeed", "device": "cpu", "config": str(path)})


def test_a_checkpoint_of_another_model_is_refused(run_tiny, tmp_path: Path):
    run_tiny(strategy=zero(2), checkpoint=SAVE)
    resume = {"resume_from": tmp_path / "run" / "checkpoints" / "step-00000003"}
    with pytest.raises(HooktrainError, match=facts("step-00000003", "shape", "recipe.yaml")):
        run_tiny(strategy=zero(2), checkpoint=SAVE, model={"width": 4}, allow_changes=["model"], trainer=resume)


@pytest.mark.parametrize("stage", MOST)
def test_nothing_is_left_of_a_run(run_tiny, stage):
    """In a notebook, or where a program trains again and again, weights and threads of each run would never be freed."""
    strategy = {"type": "deepspeed", "zero_stage": stage, "dtype": "fp32", "device": "cpu"}
    linear = torch.nn.functional.linear
    threads = []
    for _ in range(3):
        trainer = run_tiny(strategy=strategy)
        model = weakref.ref(trainer.model)
        del trainer
        gc.collect()
        assert model() is None
        assert torch.nn.functional.linear is linear
        threads.append(len(os.listdir("/proc/self/task")))
    assert threads[2] == threads[1], "the first may start what libraries keep for good"


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("config", "expected"),
    [({}, 8 * 17 + 8 * 17 + 17), ({"reduce_bucket_size": "auto"}, 289), ({"reduce_bucket_size": 77}, 77)],
)
def test_buckets_are_as_large_as_the_model_unless_configured(run_tiny, stage, config, expected):
    """DeepSpeed allocates buckets at once: by its own default two gigabytes for a model of 289 numbers."""
    sizes = []

    class Looks:
        @hookimpl
        def on_step_end(self, trainer):
            sizes.append(trainer.strategy._engine.optimizer.reduce_bucket_size)

    given = {"zero_optimization": config}
    run_tiny(
        Looks(), train_iters=1, strategy={"type": "deepspeed", "zero_stage": stage, "device": "cpu", "config": given}
    )
    assert sizes == [expected]


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_compiled(run_ranks, tmp_path, monkeypatch, stage):
    """Torch compiles behind a lock file, which a killed run leaves behind, and for which every later run waits."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    run = run_ranks(1, strategy=zero(stage, **({"offload": "optimizer"} if stage else {})))
    assert run.status == 0, run.output
    assert not (tmp_path / "extensions").exists()


def test_the_console_counts_sharded_weights(run_tiny, capsys):
    run_tiny(strategy=zero(0), console={"enabled": True})
    (shown,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("model")]
    run_tiny(strategy=zero(3), console={"enabled": True})
    assert shown in capsys.readouterr().out
    assert shown != "model 0 parameters on cpu"


@pytest.mark.parametrize("stage", [1, 3])
def test_a_frozen_base_in_bf16_is_that_of_a_float32_run(run_tiny, tmp_path, stage):
    """An adapter that was trained with a base in bf16 resumes in float32, and back."""

    class Freeze:
        @hookimpl(wrapper=True)
        def make_model(self):
            model = yield
            model.embedding.requires_grad_(False)
            return model

    half, full = zero(stage, dtype="bf16"), {"type": "torch", "dtype": "fp32", "device": "cpu"}
    save = [{"type": "full", "save_every_n_steps": 1}]
    path = tmp_path / "run" / "checkpoints"
    allowed = ["strategy", "model"]
    run_tiny(Freeze(), strategy=half, checkpoint=save, train_iters=4, exit_iteration=1)
    assert (path / "step-00000001" / "frozen.json").exists()
    for step, strategy in ((1, full), (2, half), (3, full)):
        trainer = run_tiny(
            Freeze(),
            strategy=strategy,
            checkpoint=save,
            train_iters=4,
            exit_iteration=step + 1,
            allow_changes=allowed,
            trainer={"resume_from": path / f"step-{step:08d}"},
        )
        assert trainer.global_step == step + 1
