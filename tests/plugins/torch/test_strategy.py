"""The ``torch`` strategy in one process: device, precision, loss scale, gradient norm."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hooktrain_torch import TorchConfig, TorchStrategy, device_of

from hooktrain import HooktrainError, LossSum, NonFiniteError, RecipeError, World, field, hookimpl
from hooktrain.testing import Recorder, TinyModelConfig
from tests.facts import facts


class Look:
    """Notes the type of the head's output in training and in evaluation."""

    def __init__(self):
        self.training, self.evaluation = set(), set()

    @hookimpl
    def on_train_start(self, trainer):
        def note(head, _, output):
            (self.training if torch.is_grad_enabled() else self.evaluation).add(output.dtype)

        trainer.model.head.register_forward_hook(note)


def cpu(dtype: str, **more: object) -> dict[str, object]:
    return {"strategy": {"dtype": dtype, "device": "cpu", **more}}


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_computes_in_the_precision_and_keeps_float32(run_tiny, name, dtype):
    look, recorder = Look(), Recorder()
    trainer = run_tiny(look, recorder, **cpu(name))
    assert look.training == look.evaluation == {dtype}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in moments} == {torch.float32}
    assert all(math.isfinite(line["loss"]) for line in recorder.metrics if "loss" in line)


def test_low_precision_is_near_to_float32(run_tiny):
    seen = []
    for name in ("fp32", "bf16"):
        recorder = Recorder()
        run_tiny(recorder, epochs=3, **cpu(name))
        seen.append([line["loss"] for line in recorder.metrics])
    assert seen[1] == pytest.approx(seen[0], rel=0.02)
    assert seen[1] != seen[0]


@attrs.frozen(kw_only=True)
class TypedConfig(TinyModelConfig):
    """A tiny model that says its precision, as models of Hugging Face do."""

    dtype: str = field(default="bf16")


class Typed:
    @hookimpl
    def register_configs(self):
        return {"model": {"typed": TypedConfig}}


def test_the_models_dtype_is_the_default(run_tiny):
    given = {"skip_validation": True, "model": {"type": "typed"}, "train_iters": 1}
    assert run_tiny(Typed(), **given, strategy={"device": "cpu"}).strategy.dtype is torch.bfloat16
    assert run_tiny(Typed(), **given, strategy={"device": "cpu", "dtype": "fp32"}).strategy.dtype is torch.float32


@pytest.mark.parametrize(
    ("avx512", "amx", "capability", "name"),
    [
        (True, False, "", torch.bfloat16),
        (False, True, "", torch.bfloat16),
        (False, False, "", torch.float32),
        (True, True, "avx2", torch.float32),
    ],
)
def test_auto_is_bf16_only_where_the_processor_has_it(monkeypatch, avx512, amx, capability, name):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
    assert TorchStrategy(TorchConfig(device="cpu"), World()).dtype is name


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", facts("strategy.device", "'gpu'", "auto, cpu, cuda or cuda:N")),
        ("cuda:x", facts("strategy.device", "'cuda:x'", "auto, cpu, cuda or cuda:N")),
    ],
)
def test_a_device_that_is_none(run_tiny, device, message):
    with pytest.raises(HooktrainError, match=message):
        run_tiny(**cpu("fp32") | {"strategy": {"device": device}})


def test_a_gpu_that_is_not_there(run_tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HooktrainError, match=facts("strategy.device", "'cuda'", "no GPU", "auto or cpu")):
        run_tiny(strategy={"device": "cuda"})


def test_more_ranks_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(HooktrainError, match=facts("strategy.device", "rank 1", "cuda:1", "1 GPU", "write cpu")):
        device_of("auto", World(rank=1, world_size=2, local_rank=1))
    with pytest.raises(HooktrainError, match=facts("strategy.device", "'cuda:0'", "2 ranks", "write cuda,")):
        device_of("cuda:0", World(rank=1, world_size=2, local_rank=1))
    assert device_of("auto", World()) == torch.device("cuda", 0)


def test_ranks_without_an_address_to_meet_at(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(HooktrainError, match=facts("strategy", "WORLD_SIZE is 2", "MASTER_ADDR", "--nproc")):
        TorchStrategy(TorchConfig(device="cpu"), World(world_size=2))


def test_a_precision_that_is_none(run_tiny):
    with pytest.raises(RecipeError, match=facts("strategy.dtype", "'bf17'", "auto, fp32, bf16, fp16")):
        run_tiny(strategy={"dtype": "bf17"})


# ---------------------------------------------------------------------------------------------- gradient norm


class Gradients:
    """Notes the norm of the gradients before the step, and how far the step moves the weights."""

    def __init__(self):
        self.norms, self.moves = [], []

    @hookimpl
    def on_optimizer_step_start(self, trainer):
        self.before = [p.detach().clone() for p in trainer.model.parameters()]
        self.norms.append(float(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm()))

    @hookimpl
    def on_optimizer_step_end(self, trainer):
        pairs = zip(trainer.model.parameters(), self.before, strict=True)
        self.moves.append(float(torch.cat([(a.detach() - b).flatten() for a, b in pairs]).norm()))


def test_clipping_bounds_the_update_and_logs_the_norm_before(run_tiny):
    gradients, recorder = Gradients(), Recorder()
    run_tiny(gradients, recorder, gradient_clipping=0.05, optimizer={"type": "sgd", "lr": 1.0})
    assert [line["grad_norm"] for line in recorder.metrics] == pytest.approx(gradients.norms)
    assert min(gradients.norms) > 0.05
    assert gradients.moves == pytest.approx([0.05] * 7, rel=1e-3)


def test_a_norm_below_the_limit_is_not_scaled_up(run_tiny):
    gradients = Gradients()
    run_tiny(gradients, gradient_clipping=1e6, optimizer={"type": "sgd", "lr": 1.0})
    assert gradients.moves == pytest.approx(gradients.norms, rel=1e-4)


def test_fp16_clips_gradients_without_the_loss_scale(run_tiny):
    gradients, recorder = Gradients(), Recorder()
    run_tiny(gradients, recorder, **cpu("fp16"), gradient_clipping=0.05, optimizer={"type": "sgd", "lr": 1.0})
    assert [65536 * line["grad_norm"] for line in recorder.metrics] == pytest.approx(gradients.norms)
    assert gradients.moves == pytest.approx([0.05] * 7, rel=1e-3)


def test_without_clipping_the_norm_is_computed_for_logged_steps_alone(run_tiny):
    gradients, recorder = Gradients(), Recorder()
    run_tiny(gradients, recorder, gradient_clipping=0, log_interval=3, optimizer={"type": "sgd", "lr": 1.0})
    norms = [given["grad_norm"] for name, given in recorder.calls if name == "on_optimizer_step_end"]
    assert [norm is not None for norm in norms] == [False, False, True, False, False, True, True]
    assert [float(norm) for norm in norms if norm is not None] == pytest.approx([gradients.norms[i] for i in (2, 5, 6)])
    assert [line["grad_norm"] for line in recorder.metrics] == pytest.approx([gradients.norms[i] for i in (2, 5, 6)])
    assert gradients.moves == pytest.approx(gradients.norms, rel=1e-4), "nothing is clipped"


# ------------------------------------------------------------------------------------- what is not finite


class Scaled:
    """Multiplies the loss of chosen steps, so that its gradients overflow or are NaN."""

    def __init__(self, steps, factor):
        self.steps, self.factor, self.weights = steps, factor, []

    @hookimpl(wrapper=True)
    def compute_loss(self, trainer):
        loss = yield
        chosen = torch.is_grad_enabled() and trainer.global_step in self.steps
        return LossSum(loss.total * self.factor, loss.denominator) if chosen else loss

    @hookimpl
    def on_step_end(self, trainer):
        self.weights.append(trainer.model.head.weight.detach().clone())


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("optimizer", [{"type": "adamw"}, {"type": "sgd"}, {"type": "torch", "name": "Adagrad"}])
def test_an_overflow_of_fp16_skips_the_step_and_lowers_the_scale(run_tiny, clip, optimizer):
    scaled = Scaled({2, 3}, 1e30)
    trainer = run_tiny(scaled, **cpu("fp16"), gradient_clipping=clip, optimizer={**optimizer, "lr": 0.01})
    assert trainer.state.skipped_steps == 2
    assert trainer.strategy.scaler.get_scale() == 65536 / 4
    moved = [not torch.equal(a, b) for a, b in zip(scaled.weights, scaled.weights[1:], strict=False)]
    assert moved == [True, False, False, True, True, True]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    for state in trainer.optimizer.state.values():
        assert float(state["step"]) == 5 if "step" in state else True


def test_the_loss_scale_outlives_a_resume(run_tiny, tmp_path):
    saved = {"type": "full", "save_every_n_steps": 4}
    settings = {**cpu("fp16"), "checkpoint": saved}
    undisturbed = run_tiny(Scaled({1, 2}, 1e30), **settings)
    assert undisturbed.strategy.scaler.get_scale() == 65536 / 4
    path = tmp_path / "run" / "checkpoints" / "step-00000004"
    resumed = run_tiny(Scaled({1, 2}, 1e30), **settings, trainer={"resume_from": path})
    assert resumed.strategy.scaler.state_dict() == undisturbed.strategy.scaler.state_dict()
    assert resumed.state.skipped_steps == 2
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_fp16_gradients_that_are_nan_at_any_scale_end_the_run(run_tiny):
    with pytest.raises(NonFiniteError, match=facts("strategy", "not finite", "0.5", "fp16", "on_nan: skip")):
        run_tiny(Scaled(range(99), math.nan), **cpu("fp16"), epochs=9)
    settings = {**cpu("fp16"), "epochs": 9, "on_nan": "skip", "data": {"eval_rows": 0}}
    with pytest.raises(NonFiniteError, match=facts("step 20", "max_skipped_steps", "step 1", "row ")):
        run_tiny(Scaled(range(99), math.nan), **settings)
    with pytest.raises(NonFiniteError, match=facts("63 of 63 steps", "not trained")):
        run_tiny(Scaled(range(99), math.nan), **settings, max_skipped_steps=0)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_on_nan_skip_skips_the_step(run_tiny, clip, dtype):
    scaled = Scaled({2, 3}, math.inf)
    trainer = run_tiny(scaled, **cpu(dtype), gradient_clipping=clip, on_nan="skip", log_interval=4)
    assert trainer.state.skipped_steps == 2
    moved = [not torch.equal(a, b) for a, b in zip(scaled.weights, scaled.weights[1:], strict=False)]
    assert moved == [True, False, False, True, True, True]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
