"""Optimizers: which parameters they hold, with which decay, and what is said when one cannot be made."""

from __future__ import annotations

import re

import pytest
import torch
from hooktrain_torch.optimizers import AdamConfig, AdamWConfig, AnyConfig, SGDConfig, make_optimizer
from torch import nn

from hooktrain import HooktrainError, RecipeError, hookimpl
from tests.facts import facts


class Net(nn.Module):
    """An embedding tied to the head, a norm, and a linear layer with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


def names(net: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    return {name for name, own in net.named_parameters() for parameter in parameters if own is parameter}


def groups(net: nn.Module, config: object) -> list[tuple[set[str], float]]:
    made = make_optimizer(config, net)
    return [(names(net, group["params"]), group["weight_decay"]) for group in made.param_groups]


@pytest.mark.parametrize(
    "config", [AdamWConfig(weight_decay=0.3), AdamConfig(weight_decay=0.3), SGDConfig(weight_decay=0.3)]
)
def test_matrices_decay_and_vectors_do_not(config):
    assert groups(Net(), config) == [
        ({"embedding.weight", "linear.weight"}, 0.3),
        ({"norm.weight", "norm.bias", "linear.bias"}, 0.0),
    ]


def test_vectors_decay_on_request():
    everything = {"embedding.weight", "linear.weight", "norm.weight", "norm.bias", "linear.bias"}
    assert groups(Net(), AdamWConfig(decay_vectors=True)) == [(everything, 0.1)]


@pytest.mark.parametrize("config", [AdamWConfig(), SGDConfig(), AnyConfig(name="RMSprop")])
def test_tied_weights_are_held_once_and_frozen_ones_not_at_all(config):
    net = Net()
    net.linear.requires_grad_(False)
    made = make_optimizer(config, net)
    held = [parameter for group in made.param_groups for parameter in group["params"]]
    assert len(held) == 3
    assert names(net, held) == {"embedding.weight", "norm.weight", "norm.bias"}


def test_a_model_without_vectors_has_one_group():
    assert len(make_optimizer(AdamWConfig(), nn.Linear(2, 2, bias=False)).param_groups) == 1


def test_nothing_to_train_is_an_error():
    with pytest.raises(HooktrainError, match=facts("optimizer", "no parameter", "gradients", "unfreeze", "adapter")):
        make_optimizer(AdamWConfig(), Net().requires_grad_(False))


def test_settings_reach_torch():
    adamw = make_optimizer(AdamWConfig(lr=0.5, betas=(0.8, 0.9), eps=1e-4), Net())
    assert isinstance(adamw, torch.optim.AdamW)
    assert [(g["lr"], g["betas"], g["eps"]) for g in adamw.param_groups] == [(0.5, (0.8, 0.9), 1e-4)] * 2
    adam = make_optimizer(AdamConfig(), Net())
    assert type(adam) is torch.optim.Adam
    sgd = make_optimizer(SGDConfig(momentum=0.7), Net())
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize(
    ("name", "kind"), [("Adagrad", torch.optim.Adagrad), ("torch.optim.rmsprop.RMSprop", torch.optim.RMSprop)]
)
def test_any_class_by_its_name(name, kind):
    made = make_optimizer(AnyConfig(name=name, lr=0.25, arguments={"weight_decay": 0.5}), Net())
    assert type(made) is kind
    assert (made.param_groups[0]["lr"], made.param_groups[0]["weight_decay"]) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            AnyConfig(name="AdamWW"),
            ["optimizer.name", "'AdamWW'", "'torch.optim'", "'AdamW'"],
        ),
        (
            AnyConfig(name="torch.optim.rmsprop.RMSProp"),
            ["optimizer.name", "'torch.optim.rmsprop.RMSProp'", "'RMSprop'", "class of torch.optim", "dotted path"],
        ),
        (AnyConfig(name="nowhere.Lion"), ["optimizer.name", "'nowhere.Lion'", "No module named 'nowhere'"]),
        (AnyConfig(name="lr_scheduler"), ["optimizer.name", "'lr_scheduler'", "no torch optimizer"]),
        (AnyConfig(name="os.path.join"), ["optimizer.name", "'os.path.join'", "no torch optimizer"]),
        (AnyConfig(name="LBFGS"), ["optimizer.name", "LBFGS", "several times a step", "once"]),
        (AnyConfig(name="RMSprop", arguments={"momentun": 1}), ["RMSprop", "momentun", "optimizer.arguments"]),
        (
            AnyConfig(name="RMSprop", arguments={"momentum": -1.0}),
            ["RMSprop", "(Invalid momentum value: -1.0)", "optimizer.arguments"],
        ),
    ],
    ids=lambda value: value.name if isinstance(value, AnyConfig) else "",
)
def test_a_class_that_cannot_be_made_is_explained(config, message):
    with pytest.raises(HooktrainError) as caught:
        make_optimizer(config, Net())
    assert re.search(facts(*message), str(caught.value))


# ---------------------------------------------------------------------------------------------- in a recipe


@pytest.mark.parametrize("key", ["lr", "learning_rate"])
@pytest.mark.parametrize(
    "given", [{"type": "adamw"}, {"type": "adam"}, {"type": "sgd"}, {"type": "torch", "name": "RMSprop"}]
)
def test_a_recipe_selects_it_and_gives_its_rate(run_tiny, key, given):
    trainer = run_tiny(optimizer={**given, key: 0.125}, train_iters=1)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.125


def test_the_default_is_adamw(run_tiny):
    assert type(run_tiny(optimizer={}, train_iters=1).optimizer) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 1, "learning_rate": 2}, ["optimizer.learning_rate", "'lr'"]),
        ({"lr": -1}, ["optimizer.lr", "given -1.0", "expected at least 0"]),
        ({"betas": [0.9, 1.0]}, ["optimizer.betas", "given [0.9, 1.0]", "two", "below 1"]),
        ({"betas": [0.9]}, ["optimizer.betas", "given 1", "expected 2"]),
        ({"weight_decya": 0}, ["optimizer.weight_decya", "'weight_decay'"]),
        ({"type": "adamv"}, ["optimizer.type", "'adamv'", "'adam"]),
        ({"type": "torch"}, ["optimizer.name", "missing"]),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said(run_tiny, given, message):
    with pytest.raises(RecipeError) as caught:
        run_tiny(optimizer=given)
    assert re.search(facts(*message), str(caught.value))


def test_frozen_weights_stay_as_they_are(run_tiny):
    class Freeze:
        @hookimpl(wrapper=True)
        def make_model(self):
            model = yield
            model.embedding.requires_grad_(False)
            self.before = model.embedding.weight.clone()
            return model

    freeze = Freeze()
    trainer = run_tiny(freeze, optimizer={"lr": 0.1, "weight_decay": 0.5})
    assert torch.equal(freeze.before, trainer.model.embedding.weight)
