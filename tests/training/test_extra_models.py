"""Further models of a run: references that stay as they are, and critics that are trained, under every strategy."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hooktrain_torch import place_frozen
from torch import nn

from hooktrain import ExtraModel, HooktrainError, PluginError, hookimpl
from hooktrain.inspection.plan import plan_of
from hooktrain.inspection.plan_text import print_plan
from hooktrain.inspection.value_origins import Sources
from hooktrain.testing import Recorder, TinyPlugin
from hooktrain.training.load import make_host
from tests.facts import facts
from tests.launching import stored_weights
from tests.plugins.deepspeed.zero import zero
from tests.preload import DEEPSPEED
from tests.training import extra_models
from tests.training.extra_models import Models

pytestmark = pytest.mark.preload(*DEEPSPEED)

FSDP = {"data_parallel": "fsdp2", "dtype": "fp32", "device": "cpu"}
TORCH = {"dtype": "fp32", "device": "cpu"}
STRATEGIES = {"torch": TORCH, "fsdp2": FSDP, **{f"zero {stage}": zero(stage) for stage in range(4)}}
ZERO = [pytest.param(f"zero {stage}", marks=pytest.mark.thorough) for stage in range(3)]
COMMON = {
    "epochs": 2,
    "eval_interval": 3,
    "gradient_clipping": 0.5,
    "optimizer": {"type": "adamw", "lr": 0.01},
    "checkpoint": [{"type": "full", "save_every_n_steps": 3}],
}
SOURCE = f"{Path(extra_models.__file__).read_text()}\n_plugin = Models()\n" + "".join(
    f"{hook} = _plugin.{hook}\n" for hook in ("make_models", "make_optimizer", "compute_loss")
)


def losses(recorder):
    return [line["loss"] for line in recorder.metrics]


@pytest.fixture
def reference(run_tiny, tmp_path):
    """The losses of a run in one process."""
    recorder = Recorder()
    run_tiny(Models(), recorder, strategy=TORCH, run_dir=str(tmp_path / "reference"), **COMMON)
    return losses(recorder)


def test_a_reference_stays_and_a_critic_learns(run_tiny, tmp_path):
    models, recorder, built = Models(), Recorder(), {}

    class Built:
        @hookimpl
        def on_train_start(self, trainer):
            built.update({name: copy.deepcopy(each.state_dict()) for name, each in trainer.models.items()})
            built["modes"] = {name: each.training for name, each in trainer.models.items()}

    trainer = run_tiny(models, recorder, Built(), strategy=TORCH, **COMMON)
    assert models.distances[0] == 0.0, "built from the recipe's seed: the model as it was before the first step"
    assert models.distances[-1] > 0.0
    assert built["modes"] == {"reference": False, "critic": True}
    own = {"embedding.weight", "head.weight", "head.bias"}
    assert models.seen == [{f"{where}.{name}" for where in ("model", "critic") for name in own}]
    now = {name: each.state_dict() for name, each in trainer.models.items()}
    for name in own:
        assert torch.equal(now["reference"][name], built["reference"][name])
        assert not torch.equal(now["critic"][name], built["critic"][name])
    assert not any(weight.requires_grad for weight in trainer.models["reference"].parameters())
    with pytest.raises(TypeError):
        trainer.models["another"] = nn.Linear(1, 1)
    saved = stored_weights(tmp_path / "run" / "checkpoints" / "step-00000003")
    assert saved.keys() == models.seen[0]


def test_a_run_without_further_models_has_none(run_tiny):
    trainer = run_tiny(train_iters=1)
    assert trainer.models == {} and trainer.trained is trainer.model


@pytest.mark.parametrize("name", ["torch", "fsdp2", *ZERO, "zero 3"])
def test_every_strategy_trains_the_same_and_resumes_bit_by_bit(run_tiny, reference, tmp_path, name):
    recorder, rest = Recorder(), Recorder()
    run_tiny(Models(), recorder, strategy=STRATEGIES[name], **COMMON)
    assert losses(recorder) == pytest.approx(reference, abs=2e-6)
    resume = {"resume_from": tmp_path / "run" / "checkpoints" / "step-00000003"}
    run_tiny(Models(), rest, strategy=STRATEGIES[name], trainer=resume, run_dir=str(tmp_path / "rest"), **COMMON)
    assert losses(rest) == losses(recorder)[3:]


@pytest.mark.parametrize("name", [pytest.param("torch", marks=pytest.mark.thorough), "fsdp2", *ZERO, "zero 3"])
def test_two_ranks_train_the_same(run_ranks, rank_notes, reference, name):
    source = SOURCE + (
        "\n@hookimpl\ndef on_train_start(trainer):\n"
        "    note(here=sum(getattr(p, 'ds_tensor', getattr(p, '_local_tensor', p)).numel()"
        " for p in trainer.models['reference'].parameters()))\n"
    )
    run = run_ranks(2, source, **{**COMMON, "micro_batch_size": 1, "strategy": STRATEGIES[name]})
    assert run.status == 0, run.output
    assert [line["loss"] for line in run.metrics] == pytest.approx(reference, abs=2e-6)
    shares = [notes["here"] for rank in (0, 1) for notes in rank_notes(rank)]
    full = 17 * 8 + 17 * 8 + 17
    assert all(share < full for share in shares) if name in ("fsdp2", "zero 3") else shares == [full, full]


@pytest.mark.parametrize("name", ["torch", "fsdp2", "zero 2", "zero 3"])
def test_a_frozen_model_has_the_type_that_is_asked_for(run_tiny, name):
    class Reads:
        @hookimpl(wrapper=True)
        def compute_loss(self, trainer, batch):
            self.made = trainer.models["teacher"](batch["input_ids"])
            return (yield)

        @hookimpl
        def make_models(self, model):
            return {"teacher": ExtraModel(lambda: copy.deepcopy(model), dtype="bf16", offload=True)}

    reads = Reads()
    run_tiny(reads, strategy=STRATEGIES[name], train_iters=1)
    assert reads.made.dtype == torch.bfloat16
    assert not reads.made.requires_grad


def test_offloaded_weights_are_on_the_device_only_while_they_are_used():
    """The device is torch's meta device: what meets there is seen, and nothing is computed."""
    device = torch.device("meta")
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval().requires_grad_(False)
    kept = dict(model.named_parameters())
    assert place_frozen(model, ExtraModel(nn.Module, offload=True, dtype="bf16"), device) is model
    given = torch.zeros(2, 4, device=device, dtype=torch.bfloat16, requires_grad=True)
    made = model(given)
    assert (made.device, made.dtype) == (device, torch.bfloat16)
    made.sum().backward()  # through the weights as they were on the device
    assert given.grad.shape == given.shape
    with pytest.raises(RuntimeError):
        model(given[:, :3])
    for name, weight in model.named_parameters():
        assert weight is kept[name] and weight.device.type == "cpu", "an error keeps none there either"


# ------------------------------------------------------------------------------------------------------- errors


def _returning(made):
    class Returns:
        @hookimpl
        def make_models(self, model):
            return made(model)

    return Returns()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda model: [model], ["returned a list", "mapping of hooktrain.ExtraModel by name"]),
        (lambda model: {"reference": model}, ["a TinyModel as 'reference'", "hooktrain.ExtraModel(build)"]),
        (lambda model: {"model": ExtraModel(lambda: model)}, ["the name 'model'", "the run's own model"]),
        (lambda model: {"a b": ExtraModel(lambda: model)}, ["the name 'a b'", "such as reference"]),
        (lambda model: {"again": ExtraModel(lambda: model)}, ["'again' shares weights with the run's model"]),
        (lambda model: {"one": ExtraModel(lambda: 1)}, ["'one' is a int", "torch module"]),
        (lambda model: {"one": ExtraModel(lambda: model, dtype="int8")}, ["dtype is 'int8'", "'bf16'"]),
        (lambda model: {"one": ExtraModel(lambda: model, trainable=True, offload=True)}, ["offload", "leave it out"]),
    ],
)
def test_wrong_models_are_refused_by_name(run_tiny, made, message):
    with pytest.raises((HooktrainError, ValueError), match=facts(*message)) as caught:
        run_tiny(_returning(made))
    assert "make_models" in str(caught.value) or isinstance(caught.value, ValueError)


def test_two_plugins_with_one_name(run_tiny):
    def made(model):
        return {"reference": ExtraModel(lambda: copy.deepcopy(model))}

    class Another:
        @hookimpl
        def make_models(self, model):
            return made(model)

    with pytest.raises(PluginError, match=facts("'reference'", "Returns returns one too", "give it another name")):
        run_tiny(Another(), _returning(made))


def test_an_error_while_building_names_the_plugin(run_tiny):
    from hooktrain.errors import failure_of

    def fails():
        raise RuntimeError("no such weights")

    with pytest.raises(RuntimeError) as caught:
        run_tiny(_returning(lambda model: {"reward": ExtraModel(fails)}))
    assert failure_of(caught.value).where.startswith("plugin 'Returns', hook make_models")


def test_a_strategy_that_cannot_keep_one_is_named(run_tiny, monkeypatch):
    from hooktrain_torch import TorchStrategy

    monkeypatch.delattr(TorchStrategy, "prepare_frozen_model")
    with pytest.raises(HooktrainError, match=facts("models.reference", "TorchStrategy", "prepare_frozen_model")):
        run_tiny(Models(critic=False))


# --------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize("strategy", [TORCH, FSDP, zero(2), zero(3)], ids=["torch", "fsdp2", "zero 2", "zero 3"])
def test_a_plan_counts_them(tiny_recipe, capsys, strategy):
    def planned(*plugins):
        host = make_host()
        for plugin in (TinyPlugin(), *plugins):
            host.register(plugin)
        return plan_of(host, Sources(file=None, raw={**tiny_recipe, "strategy": strategy}))

    without, found = planned()["estimates"], planned(Models())
    assert json.loads(json.dumps(found["estimates"])) == found["estimates"]
    model, memory = found["estimates"]["model"], found["estimates"]["memory"]
    size = without["model"]["weight_bytes"]
    assert model["class"] == without["model"]["class"]
    assert model["weight_bytes"] == 2 * size, "the critic is trained with the model"
    assert model["optimizer_bytes"] == 2 * without["model"]["optimizer_bytes"]
    assert model["further_models"]["reference"]["weight_bytes"] == size
    assert memory["device"]["model reference"] == size
    print_plan(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert "reference: TinyModel, 289 parameters, frozen; float32" in printed
    assert "critic: TinyModel, trained with it" in printed


@pytest.mark.parametrize("strategy", [{}, {"type": "deepspeed", "zero_stage": 2}], ids=["torch", "zero 2"])
def test_a_plan_counts_an_offloaded_one_on_the_host(tiny_recipe, strategy):
    host = make_host()
    host.register(TinyPlugin())
    host.register(Models(critic=False, offload=True, dtype="fp32"))
    raw = {**tiny_recipe, "strategy": {**strategy, "device": "cuda", "dtype": "bf16"}}
    memory = plan_of(host, Sources(file=None, raw=raw))["estimates"]["memory"]
    assert memory["host"] == {"model reference": 4 * 289} and "model reference" not in memory["device"]


def test_a_plan_builds_what_needs_no_weights(tiny_recipe):
    def weights():
        raise AssertionError("a plan reads no weights")

    class Reads:
        @hookimpl
        def make_models(self, tokenizer):
            assert tokenizer is None
            return {"teacher": ExtraModel(weights, build_meta=lambda: nn.Linear(8, 8), dtype="bf16")}

    host = make_host()
    host.register(TinyPlugin())
    host.register(Reads())
    model = plan_of(host, Sources(file=None, raw=tiny_recipe))["estimates"]["model"]
    assert model["further_models"]["teacher"]["weight_bytes"] == 2 * 72
