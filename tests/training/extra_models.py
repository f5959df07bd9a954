"""A plugin with a frozen reference and a trained critic, for runs in this process and on several ranks."""

import copy
from typing import Any

import torch

from hooktrain import ExtraModel, hookimpl


class Models:
    """Adds to the loss the distance from a reference, and what a critic is off from it."""

    def __init__(self, critic: bool = True, **reference: Any) -> None:
        self.critic, self.reference = critic, reference
        self.distances: list[float] = []
        self.seen: list[set[str]] = []

    @hookimpl
    def make_models(self, model, recipe, tokenizer, world, hooks):
        again = {"config": recipe.model, "tokenizer": tokenizer, "world": world, "recipe": recipe}
        made = {"reference": ExtraModel(lambda: hooks.make_model(**again), **self.reference)}
        if self.critic:
            made["critic"] = ExtraModel(lambda: copy.deepcopy(model), trainable=True)
        return made

    @hookimpl(wrapper=True)
    def make_optimizer(self, model):
        self.seen.append({name for name, _ in model.named_parameters()})
        return (yield)

    @hookimpl(wrapper=True)
    def compute_loss(self, trainer, model, batch):
        loss = yield
        reference, ids = trainer.models["reference"], batch["input_ids"]
        with torch.no_grad():
            goal = reference.head(reference.embedding(ids).tanh())  # in parts, as losses call large models
            assert torch.equal(goal, reference(ids)) and not reference.training
        mask = (batch["labels"] != -100)[..., None]
        distance = ((model(ids) - goal).pow(2) * mask).sum()
        self.distances.append(float(distance.detach()))
        total = loss.total + 0.1 * distance
        if self.critic:
            total = total + 0.1 * ((trainer.models["critic"](ids) - goal - 0.5).pow(2) * mask).sum()
        return loss._replace(total=total)
