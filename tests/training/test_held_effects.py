"""Plugins that say that they only observe are held to it in every run."""

from __future__ import annotations

import os
import random
import signal
import sys

import numpy
import pytest
import torch

from hooktrain import PluginError, PluginInfo, hookimpl
from tests.facts import facts


def plugin_of(change, hook="on_step_end", step=0, name="cheats", **declared):
    """A plugin that makes a change in an event, from a step on."""

    def event(self, trainer):
        if trainer.global_step >= step:
            change(trainer)

    kind = type(name, (), {hook: hookimpl(event), "hooktrain_plugin": PluginInfo(name=name, **declared)})
    return kind()


def weight(trainer):
    return trainer.model.head.weight


@torch.no_grad()
def writes(trainer):
    weight(trainer).add_(0.01)


def writes_past_the_counter(trainer):
    weight(trainer).data.add_(0.01)


def writes_by_numpy(trainer):
    weight(trainer).detach().numpy()[:] += 0.01


def replaces_data(trainer):
    weight(trainer).data = weight(trainer).data + 0.01


def negates(trainer):
    weight(trainer).data.neg_()


@torch.no_grad()
def writes_to_the_state(trainer):
    next(iter(trainer.optimizer.state.values()))["exp_avg"].add_(1)


def changes_the_rate(trainer):
    trainer.optimizer.param_groups[0]["lr"] *= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (writes, ["'head.weight'"]),
        (writes_to_the_state, ["optimizer's state"]),
        (lambda trainer: torch.set_grad_enabled(False), ["grad mode"]),
    ],
    ids=["parameter", "state", "grad-mode"],
)
def test_what_version_counters_show_is_named_in_the_first_call(run_tiny, change, words):
    with torch.enable_grad(), pytest.raises(PluginError, match=facts("plugin 'cheats'", "on_step_end", "step 3", "rank 0", *words)):
        run_tiny(plugin_of(change, step=3), log_interval=100, train_iters=8)
