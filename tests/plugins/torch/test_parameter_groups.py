"""Parameter groups: who is in which, beside plain PyTorch, resumed, sharded, planned, and refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_torch import GroupConfig
from hooktrain_torch.combined_optimizer import CombinedOptimizer
from hooktrain_torch.optimizers import AdamWConfig, AnyConfig, make_optimizer
from torch import nn

from hooktrain import RecipeError
from hooktrain.inspection.plan import plan_of
from hooktrain.inspection.value_origins import Sources
from hooktrain.testing import Recorder, TinyDataConfig, TinyModel, TinyModelConfig, TinyPlugin
from hooktrain.training.load import make_host
from tests.facts import facts
from tests.launching import alone, assert_equal_runs, stored_weights
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

GROUPS = [
    {"match": "embed", "lr": 1e-3},
    {"match": "bias", "weight_decay": 0.3},
    {"match": "head", "type": "muon", "lr": 0.02},
]
MUON = {"type": "adamw", "lr": 0.01, "groups": GROUPS}
COMMON: dict[str, Any] = {"epochs": 2, "gradient_clipping": 0.2, "optimizer": MUON, "scheduler": {"type": "cosine"}}
SAVE = {"type": "full", "save_every_n_steps": 3, "save_end_of_training": True}
FSDP = {"data_parallel": "fsdp2", "dtype": "fp32", "device": "cpu"}


class Net(nn.Module):
    """Two layers with norms, an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(nn.ModuleDict({"mlp": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}) for _ in range(2))
        self.head = nn.Linear(4, 5, bias=False)


def held(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, list[str], float, float]]:
    """Pattern, names, rate and decay of each group."""
    names = {parameter: name for name, parameter in net.named_parameters()}
    return [
        (group.get("match", ""), [names[p] for p in group["params"]], group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    ]


def test_the_first_match_wins_and_the_rest_has_the_optimizers_settings():
    net = Net()
    groups = (
        GroupConfig(match="embed|head", lr=1e-6),
        GroupConfig(match=r"layers\.0", weight_decay=0.5),
        GroupConfig(match="norm", lr=1e-4),
    )
    made = make_optimizer(AdamWConfig(lr=1e-5, weight_decay=0.1, groups=groups), net)
    assert type(made) is torch.optim.AdamW
    zero = ["layers.0.mlp.weight", "layers.0.mlp.bias", "layers.0.norm.weight", "layers.0.norm.bias"]
    assert held(net, made) == [
        ("", ["layers.1.mlp.weight"], 1e-5, 0.1),
        ("", ["layers.1.mlp.bias"], 1e-5, 0.0),
        ("embed|head", ["embed.weight", "head.weight"], 1e-6, 0.1),
        (r"layers\.0", zero, 1e-5, 0.5),
        ("norm", ["layers.1.norm.weight", "layers.1.norm.bias"], 1e-4, 0.0),
    ]


def test_a_type_is_another_optimizer_with_defaults_of_its_own():
    net = Net()
    groups = (
        GroupConfig(match="norm|bias", type="torch", name="RMSprop", arguments={"alpha": 0.5}),
        GroupConfig(match="mlp", type="muon", momentum=0.9),
        GroupConfig(match="embed", betas=(0.8, 0.9)),
    )
    made = make_optimizer(AdamWConfig(groups=groups), net)
    assert isinstance(made, CombinedOptimizer)
    assert [type(each).__name__ for each in made.optimizers] == ["AdamW", "RMSprop", "Muon"]
    assert [group["lr"] for group in made.param_groups] == [2e-5, 2e-5, 1e-3, 2e-2]
    assert made.param_groups[1]["betas"] == (0.8, 0.9)
    assert (made.param_groups[2]["alpha"], made.param_groups[3]["momentum"]) == (0.5, 0.9)
    everything = [parameter for group in made.param_groups for parameter in group["params"]]
    assert len(everything) == len(set(everything)) == len([*net.parameters()])


def plain_loop(steps: int) -> tuple[list[float], nn.Module]:
    """What ``MUON`` says, written out by hand."""
    rows = TinyPlugin().make_data(TinyDataConfig(), None)
    torch.manual_seed(42)
    net = TinyModel(TinyModelConfig())
    torch.manual_seed(42)
    embedding, weight, bias = net.embedding.weight, net.head.weight, net.head.bias
    adamw = torch.optim.AdamW(
        [
            {"params": [embedding], "lr": 1e-3, "weight_decay": 0.1},
            {"params": [bias], "lr": 0.01, "weight_decay": 0.3},
        ],
        fused=True,
    )
    muon = torch.optim.Muon([weight], lr=0.02, weight_decay=0.1, momentum=0.95)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(42 * 1_000_003))
    losses = []
    for window in order.split(4)[:steps]:
        batch = rows.collate([rows.train.rows[row] for row in window])
        count = int((batch["labels"][:, 1:] != -100).sum())
        logits = net(batch["input_ids"])[:, :-1].flatten(0, 1)
        total = nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_([embedding, bias, weight], 1.0)
        for optimizer in (adamw, muon):
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(total.detach()) / count)
    return losses, net


def test_muon_with_groups_is_the_plain_loop_bit_by_bit(run_tiny):
    recorder = Recorder()
    trainer = run_tiny(recorder, micro_batch_size=4, train_iters=4, optimizer=MUON, strategy={"dtype": "fp32"})
    losses, net = plain_loop(4)
    assert [line["loss"] for line in recorder.metrics] == losses
    for name, value in net.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value), name


def test_every_group_follows_the_schedule(run_tiny):
    trainer = run_tiny(train_iters=4, **{**COMMON, "epochs": None, "scheduler": {"type": "linear", "warmup_steps": 0}})
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0, 0, 0]
    assert trainer.scheduler.base_lrs == [1e-3, 0.01, 0.02]


@pytest.mark.parametrize(
    "strategy",
    [
        {"dtype": "fp32"},
        pytest.param({"type": "deepspeed", "zero_stage": 0, "dtype": "fp32"}, marks=pytest.mark.thorough),
    ],
)
def test_a_resume_repeats_the_run_bit_by_bit(run_tiny, tmp_path, strategy):
    recorder, rest = Recorder(), Recorder()
    settings = {**COMMON, "checkpoint": SAVE, "strategy": strategy, "micro_batch_size": 4}
    one = run_tiny(recorder, **settings)
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    two = run_tiny(rest, trainer={"resume_from": path}, run_dir=str(tmp_path / "rest"), **settings)
    assert [line["loss"] for line in rest.metrics] == [line["loss"] for line in recorder.metrics][3:]
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert len(two.optimizer.state) == 3
    assert all(each.state is two.optimizer.state for each in two.optimizer.optimizers)


@pytest.mark.parametrize(
    "strategy", [FSDP, pytest.param({"dtype": "fp32", "device": "cpu"}, marks=pytest.mark.thorough)]
)
def test_two_ranks_are_one_global_batch(run_ranks, run_tiny, strategy):
    """Muon's orthogonalization is of complete matrices also where their rows are on two ranks."""
    run = run_ranks(2, gradient_accumulation_steps=2, strategy=strategy, checkpoint=SAVE, **COMMON)
    # Muon rounds to bf16 while it orthogonalizes, which moves a weight by a part of its rate of 0.02
    assert_equal_runs(run, *alone(run_tiny, micro_batch_size=8, **COMMON), tolerance=2e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", [FSDP, {"dtype": "fp32", "device": "cpu"}])
def test_two_ranks_resume_bit_by_bit(run_ranks, tmp_path, strategy):
    settings = {**COMMON, "checkpoint": SAVE, "micro_batch_size": 1, "strategy": strategy}
    undisturbed = run_ranks(2, **settings)
    assert undisturbed.status == 0, undisturbed.output
    words = ["--resume", str(undisturbed.folder / "checkpoints" / "step-00000003")]
    folder = tmp_path / "rest"
    rest = run_ranks(2, words=words, **{**settings, "run_dir": str(folder)}).of(folder)
    assert rest.status == 0, rest.output
    assert [line["loss"] for line in rest.metrics] == [line["loss"] for line in undisturbed.metrics][3:]
    last = f"checkpoints/step-{len(undisturbed.metrics):08d}"
    for kind in ("model", "optimizer"):
        expected, found = (stored_weights(run.folder / last, kind) for run in (undisturbed, rest))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("stage", [2, *(pytest.param(stage, marks=pytest.mark.thorough) for stage in (1, 3))])
def test_zero_shards_groups_of_two_optimizers(run_tiny, tmp_path, stage):
    """DeepSpeed steps the vectors of each group, and resumes."""
    groups = [{"match": "embed", "lr": 1e-3}, {"match": "bias", "type": "sgd", "lr": 0.1, "momentum": 0.9}]
    settings: dict[str, Any] = {**COMMON, "optimizer": {"lr": 0.01, "groups": groups}, "micro_batch_size": 4}
    zero = {"type": "deepspeed", "zero_stage": stage, "dtype": "fp32", "device": "cpu"}
    reference, recorder, rest = Recorder(), Recorder(), Recorder()
    run_tiny(reference, strategy={"dtype": "fp32"}, **settings)
    run_tiny(recorder, strategy=zero, checkpoint=SAVE, **settings)
    expected = [line["loss"] for line in reference.metrics]
    assert [line["loss"] for line in recorder.metrics] == pytest.approx(expected, abs=2e-6)
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    more = {"trainer": {"resume_from": path}, "run_dir": str(tmp_path / "rest")}
    run_tiny(rest, strategy=zero, checkpoint=SAVE, **more, **settings)
    assert [line["loss"] for line in rest.metrics] == [line["loss"] for line in recorder.metrics][3:]


# ---------------------------------------------------------------------------------------------- plan and errors


def plan(**more: Any) -> dict[str, Any]:
    host = make_host(discover=True)
    host.register(TinyPlugin(), "tiny")
    return plan_of(host, Sources(file=None, raw={"type": "tiny", **more}))


def test_a_plan_counts_the_parameters_of_each_group():
    found = plan(optimizer=MUON)
    assert not found["complaints"]
    counted = found["estimates"]["model"]["optimizer_groups"]
    assert [(each["match"], each["type"], each["parameters"]) for each in counted] == [
        ("embed", None, 136),
        ("bias", None, 17),
        ("head", "muon", 136),
    ]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"match": "embedd?ings"}], ["groups[0].match", "'embedd?ings'", "no parameter", "head.bias"]),
        ([{"match": "head"}, {"match": "bias"}], ["groups[1].match", "'bias'", "head.bias", "before it"]),
        ([{"match": "head", "type": "muon"}], ["groups[0].match", "muon", "head.bias", "(17,)", "type: adamw"]),
    ],
)
def test_what_a_model_refuses_is_an_error_of_the_plan_and_of_the_run(run_tiny, groups, message):
    pattern = facts(*message)
    ((where, text),) = [(each["where"], each["message"]) for each in plan(optimizer={"groups": groups})["complaints"]]
    assert re.search(pattern, f"{where}: {text}")
    with pytest.raises(RecipeError) as caught:
        run_tiny(optimizer={"groups": groups})
    assert re.search(pattern, str(caught.value))


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"groups": [{"lr": 1}]}, ["groups[0].match", "missing"]),
        ({"groups": [{"match": "a("}]}, ["groups[0].match", "'a('", "no regular expression"]),
        ({"groups": [{"match": "a", "lr": -1}]}, ["groups[0].lr", "given -1.0", "at least 0"]),
        ({"groups": [{"match": "a", "weight_decya": 0}]}, ["groups[0].weight_decya", "'weight_decay'"]),
        ({"groups": [{"match": "a", "type": "lion"}]}, ["groups[0].type", "'lion'", "adamw, adam, sgd, muon, torch"]),
        ({"groups": [{"match": "a", "momentum": 0.5}]}, ["groups[0].momentum", "no such setting", "remove"]),
        ({"groups": [{"match": "a", "type": "torch"}]}, ["groups[0].name", "missing"]),
        ({"groups": ["a"]}, ["groups[0]", "'a' (text)", "expected a mapping"]),
        ({"type": "cpu_adam", "groups": [{"match": "a", "type": "sgd"}]}, ["groups[0].type", "'sgd'", "torch's own"]),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said_with_its_path(run_tiny, optimizer, message):
    with pytest.raises(RecipeError) as caught:
        run_tiny(optimizer=optimizer)
    assert re.search(facts("optimizer", *message), str(caught.value))


def test_a_setting_that_any_class_lacks_is_refused():
    groups = (GroupConfig(match="embed", momentum=0.5),)
    with pytest.raises(Exception, match=facts("'embed'", "'momentum'", "Adagrad does not have", "lr_decay")):
        make_optimizer(AnyConfig(name="Adagrad", groups=groups), Net())


@pytest.mark.parametrize("optimizer", [MUON, {"type": "torch", "name": "Muon"}])
def test_muon_is_refused_where_weights_are_flattened(optimizer, run_tiny):
    with pytest.raises(RecipeError) as caught:
        run_tiny(optimizer=optimizer, strategy={"type": "deepspeed", "device": "cpu"})
    assert re.search(facts("optimizer", "muon", "ZeRO stage 2", "zero_stage: 0", "fsdp2"), str(caught.value))


def test_other_groups_are_another_training(run_tiny, tmp_path: Path):
    run_tiny(checkpoint=SAVE, train_iters=3, **{**COMMON, "epochs": None})
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    changed = {**MUON, "groups": [{**GROUPS[0], "lr": 2e-3}, *GROUPS[1:]]}
    with pytest.raises(Exception, match=facts("optimizer.groups", "allow_changes")):
        run_tiny(
            trainer={"resume_from": path},
            run_dir=str(tmp_path / "rest"),
            checkpoint=SAVE,
            train_iters=3,
            **{**COMMON, "epochs": None, "optimizer": changed},
        )
