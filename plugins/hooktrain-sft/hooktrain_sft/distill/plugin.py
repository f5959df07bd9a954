"""The plugin ``distill``: the loss of that name, its teacher, and the teacher's probabilities ahead."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hooktrain import (
    CheckpointError,
    Complaint,
    ConfigDefaults,
    Data,
    DataError,
    ExtraModel,
    PluginInfo,
    Recipe,
    StrategyDefaults,
    World,
    hookimpl,
    member,
)
from hooktrain_sft.config import SourceOptions, TokenDataConfig
from hooktrain_sft.distill.config import DistillLossConfig

if TYPE_CHECKING:
    from torch.nn import Module

    from hooktrain import Batch, LossSum, Trainer
    from hooktrain_sft.distill.teacher import TeacherForward

__all__ = ["DistillPlugin"]

_NAME = "teacher"
"""Name of the teacher under ``models`` and among ``trainer.models``."""


def _is_used(recipe: Recipe) -> bool:
    from hooktrain_hf import FrozenModelConfig, models_of

    return isinstance(recipe.loss, DistillLossConfig) or models_of(recipe).teacher != FrozenModelConfig()


class DistillPlugin:
    """Distillation: the loss ``distill`` and the model ``models.teacher``."""

    hooktrain_plugin = PluginInfo(changes_gradients=True, active_when=_is_used)

    def __init__(self) -> None:
        self._forward: TeacherForward | None = None
        self._weights: str | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"loss": {"distill": DistillLossConfig}}

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        from hooktrain_hf import FrozenModelConfig, models_of

        teacher, loss = models_of(recipe).teacher, recipe.loss
        given = teacher != FrozenModelConfig()
        if not isinstance(loss, DistillLossConfig):
            if given:
                yield Complaint(
                    "models.teacher", "has no effect with this loss; write loss: {type: distill}, or remove it"
                )
            return
        if not given:
            yield Complaint(
                "models.teacher",
                "missing, and the loss distill learns from it; write for example models: {teacher: {name_or_path:"
                " HuggingFaceTB/SmolLM2-1.7B-Instruct}}",
            )
        if member(recipe.strategy, ConfigDefaults, "sequence_parallel") > 1:
            yield Complaint(
                "strategy.sequence_parallel", "the loss distill needs complete sequences on each rank; remove it"
            )
        if isinstance(recipe.data, TokenDataConfig) and recipe.data.together:
            yield Complaint("loss.type", "distill learns from single answers, not from pairs; write type: sft")
        if loss.top_k is not None:
            yield from _ahead_complaints(recipe, given and teacher.name_or_path is None)

    # imports that need torch are inside the hooks, because listings load this module too

    @hookimpl(wrapper=True)
    def make_data(self, config: Any, tokenizer: Any, recipe: Recipe) -> Generator[None, Data | None, Data | None]:
        made = yield
        if made is None or _top_k(recipe) is None:
            return made
        from hooktrain_sft.distill.ahead import with_teacher

        return with_teacher(made, recipe, tokenizer)

    @hookimpl(wrapper=True)
    def make_loader(self, data: Data, recipe: Recipe) -> Generator[None, Any, Any]:
        if _top_k(recipe) is not None:
            _require_stored(data)
        return (yield)

    @hookimpl
    def store_outputs(
        self, name: str, recipe: Recipe, tokenizer: Any, world: World, hooks: Any
    ) -> Mapping[str, Any] | None:
        if name != _NAME or _top_k(recipe) is None:
            return None
        from hooktrain_sft.distill.ahead import store_teacher

        return store_teacher(recipe, tokenizer, world, hooks)

    @hookimpl
    def make_loss(self, config: Any) -> Callable[..., LossSum] | None:
        if not isinstance(config, DistillLossConfig):
            return None
        from hooktrain_sft.distill.loss import DistillLoss

        return DistillLoss(config)

    @hookimpl
    def make_models(
        self, model: Module, recipe: Recipe, tokenizer: Any, world: World, hooks: Any
    ) -> Mapping[str, ExtraModel] | None:
        if not isinstance(recipe.loss, DistillLossConfig) or recipe.loss.top_k is not None:
            return None
        from hooktrain_hf import make_frozen_model, models_of, require_same_tokens

        config = models_of(recipe).teacher

        def check(made: Any) -> None:
            require_same_tokens(_NAME, config, made, tokenizer)

        given = {"hooks": hooks, "tokenizer": tokenizer, "world": world}
        made = make_frozen_model(_NAME, config, model, recipe, **given, check=check, grows=False)
        return None if made is None else {_NAME: made}

    @hookimpl
    def estimate_activations(self, recipe: Recipe, model: Any, sequences: int, tokens: int) -> Mapping[str, int] | None:
        if not isinstance(recipe.loss, DistillLossConfig):
            return None
        from hooktrain_sft.data.estimate import logits

        made = dict(logits(recipe, model, sequences * tokens))
        if "logits" in made:  # five tensors instead of two, of chunks that are half as large where they are chosen
            made["logits"] = made["logits"] * 5 // (2 if recipe.loss.chunk_size else 4)
        return made

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        loss = trainer.recipe.loss
        if not isinstance(loss, DistillLossConfig):
            return
        from hooktrain_hf import describe_frozen_model, models_of

        config = models_of(trainer.recipe).teacher
        if loss.top_k is None:
            trainer.say(describe_frozen_model(_NAME, config, trainer.models.get(_NAME)))
        else:
            trainer.say(f"{_NAME}: {config.name_or_path}, its {loss.top_k:,} likeliest tokens as they are stored")

    @hookimpl
    def collect_state(self, trainer: Trainer) -> Mapping[str, Any] | None:
        weights = self._weights_of(trainer)
        return None if weights is None else {"weights": weights}

    @hookimpl
    def restore_state(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        now = self._weights_of(trainer)
        allowed = {"*", "models", "models.teacher"} & set(trainer.recipe.allow_changes)
        if now is not None and state["weights"] != now and not allowed:
            from hooktrain_hf import models_of

            raise CheckpointError(
                f"models.teacher: '{models_of(trainer.recipe).teacher.name_or_path}' has other weights than when the"
                " checkpoint was saved, so that the training would become another one; put them back, or resume anyway"
                " with `allow_changes: [models.teacher]`"
            )

    def _weights_of(self, trainer: Trainer) -> str | None:
        """Return what identifies the weights of a teacher by name beside the model; None where that is not known."""
        from hooktrain_hf import models_of, weights_fingerprint

        name = models_of(trainer.recipe).teacher.name_or_path
        if name is None or _top_k(trainer.recipe) is not None:  # with top_k it is in the fingerprint of the data
            return None
        if self._weights is None:
            self._weights = weights_fingerprint(name)
        return self._weights

    @hookimpl(wrapper=True)
    def compute_loss(
        self, trainer: Trainer, model: Module, batch: Batch, denominator: float
    ) -> Generator[None, LossSum, LossSum]:
        loss = trainer.recipe.loss
        if isinstance(loss, DistillLossConfig):
            from hooktrain_sft.distill.loss import STORED, TEACHER, DistillLoss

            if loss.top_k is not None and STORED[0] not in batch:
                _require_stored(trainer.data)
            if loss.top_k is None and isinstance(trainer.loss, DistillLoss):
                batch[TEACHER] = self._teach(trainer, model, batch, denominator)
        return (yield)

    def _teach(self, trainer: Trainer, model: Module, batch: Batch, denominator: float) -> Any:
        """Return what the teacher says about a micro-batch."""
        from hooktrain_hf import without_adapter

        from hooktrain_sft.distill.teacher import TeacherForward

        if self._forward is None:
            self._forward = TeacherForward(trainer.say)
        teacher, shared = trainer.models.get(_NAME), bool(member(trainer.strategy, StrategyDefaults, "shards_weights"))
        if teacher is not None:
            return self._forward(teacher, batch, denominator, copies_head=shared)
        with without_adapter(model):
            return self._forward(model, batch, denominator, copies_head=shared)


def _top_k(recipe: Recipe) -> int | None:
    return recipe.loss.top_k if isinstance(recipe.loss, DistillLossConfig) else None


def _require_stored(data: Data) -> None:
    """Raise a ``DataError`` where the teacher's probabilities have not been stored."""
    found = data.report.get("teacher", {})
    if not found or found.get("missing"):
        raise DataError(found.get("missing") or "loss.top_k: the data are not those of hooktrain-sft, expected them")


def _ahead_complaints(recipe: Recipe, unnamed: bool) -> Iterator[Complaint]:
    """Yield why the probabilities of the recipe's teacher cannot be stored."""
    data = recipe.data
    if unnamed:
        yield Complaint("models.teacher.type", "loss.top_k needs a teacher by name; give name_or_path, or remove top_k")
    if not isinstance(data, TokenDataConfig):
        yield Complaint("loss.top_k", "needs data of hooktrain-sft; write type: sft or causal, or remove top_k")
        return
    if any(SourceOptions.of(source).streaming for source in data.sources):
        yield Complaint("loss.top_k", "needs data that are prepared ahead, not a stream; remove top_k or streaming")
    if not data.use_data_cache:
        yield Complaint("loss.top_k", "needs the cache; remove data.use_data_cache: false, or remove top_k")
