"""The plugin: the trainer types of preferences with their data, losses and reference."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import (
    CheckpointError,
    Complaint,
    Data,
    ExtraModel,
    PluginInfo,
    Recipe,
    TrainerType,
    World,
    hookimpl,
)
from hooktrain_preference.config import (
    KTODataConfig,
    ModelsSettings,
    PreferenceDataConfig,
    RewardDataConfig,
    RewardModelConfig,
    settings_of,
)
from hooktrain_preference.loss_config import (
    AnswerLossConfig,
    CPOLossConfig,
    DPOLossConfig,
    KTOLossConfig,
    ORPOLossConfig,
    PairLossConfig,
    RewardLossConfig,
    SimPOLossConfig,
)

if TYPE_CHECKING:
    from hooktrain_sft import Format, Rendered
    from torch import Tensor
    from torch.nn import Module

    from hooktrain import Batch, LossSum, Trainer
    from hooktrain_preference.metrics_by_label import MetricsByLabel
    from hooktrain_preference.rows import AnswerRows

__all__ = ["PreferencePlugin"]

_DATA = (PreferenceDataConfig, KTODataConfig)


def _is_used(recipe: Recipe) -> bool:
    ours = isinstance(recipe.loss, (AnswerLossConfig, RewardLossConfig)) or isinstance(recipe.data, _DATA)
    return ours or settings_of(recipe) != ModelsSettings()


def _needs_reference(recipe: Recipe) -> bool:
    return isinstance(recipe.loss, AnswerLossConfig) and recipe.loss.needs_reference


def _precomputes(recipe: Recipe) -> bool:
    return _needs_reference(recipe) and settings_of(recipe).reference.precompute


class PreferencePlugin:
    """Answers that people like more or less, the losses that compare them, and their reference."""

    hooktrain_plugin = PluginInfo(changes_gradients=True, active_when=_is_used)

    def __init__(self) -> None:
        self._rows: list[AnswerRows] = []
        self._by_label: MetricsByLabel | None = None
        self._identity: str | None = None  # of the reference's weights

    # --------------------------------------------------------------------------------------------- registration

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        losses = {"dpo": DPOLossConfig, "simpo": SimPOLossConfig, "orpo": ORPOLossConfig, "cpo": CPOLossConfig}
        return {
            "data": {"preference": PreferenceDataConfig, "kto": KTODataConfig, "reward": RewardDataConfig},
            "model": {"reward": RewardModelConfig},
            "loss": {**losses, "kto": KTOLossConfig, "reward": RewardLossConfig},
            "settings": {"models": ModelsSettings},
        }

    @hookimpl
    def register_trainer_types(self) -> Mapping[str, TrainerType]:
        parts: dict[str, Sequence[str]] = {
            "tokenizer": ("huggingface", "*"),
            "source": ("huggingface", "*"),
            "model": ("huggingface", "liger", "*"),
            "optimizer": ("adamw", "*"),
            "scheduler": ("cosine", "*"),
            "strategy": ("torch", "deepspeed", "*"),
            "checkpoint": ("full", "huggingface", "*"),
        }
        pairs = {**parts, "data": ("preference",), "loss": ("dpo", "simpo", "orpo", "cpo", "*")}
        unpaired = {**parts, "data": ("kto",), "loss": ("kto", "*")}
        reward = {**parts, "data": ("reward",), "loss": ("reward", "*"), "model": ("reward", "*")}
        return {
            "preference": TrainerType(pairs, "training on pairs of a preferred and another answer"),
            "dpo": TrainerType(pairs, "another name of `preference`"),
            "kto": TrainerType(unpaired, "training on answers that are desirable or not"),
            "reward": TrainerType(reward, "a model that scores answers, from pairs of them"),
        }

    @hookimpl
    def unused_hooks(self, recipe: Recipe) -> Sequence[str]:
        unused = [] if isinstance(recipe.loss, KTOLossConfig) else ["run_evaluate", "collect_metrics"]
        if _needs_reference(recipe):
            return unused
        return [*unused, "compute_loss", *([] if isinstance(recipe.loss, RewardLossConfig) else ["make_models"])]

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        loss = recipe.loss
        if settings_of(recipe) != ModelsSettings() and not _needs_reference(recipe):
            yield Complaint("models.reference", "has no effect, since the loss compares with no reference; remove it")
        if isinstance(loss, PairLossConfig) and type(recipe.data) is not PreferenceDataConfig:
            yield Complaint("loss.type", "needs pairs; write `type: preference`, or choose another loss")
        if isinstance(loss, KTOLossConfig) and not isinstance(recipe.data, KTODataConfig):
            yield Complaint("loss.type", "needs answers with labels; write `type: kto`, or choose another loss")
        if isinstance(loss, RewardLossConfig) and not isinstance(recipe.data, RewardDataConfig):
            yield Complaint("loss.type", "needs a model that scores answers; write `type: reward`")
        if isinstance(loss, KTOLossConfig) and loss.estimates_kl and isinstance(recipe.data, KTODataConfig):
            if recipe.micro_batch_size < 2 and not recipe.data.pack_samples:
                yield Complaint(
                    "micro_batch_size",
                    "given 1, with which no answer can be put behind another prompt to estimate the KL"
                    " divergence, expected 2 or more; raise it, or write loss.loss_type: apo_zero_unpaired",
                )
            if settings_of(recipe).reference.precompute:
                yield Complaint(
                    "models.reference.precompute",
                    "given true with loss.loss_type kto, whose estimate of the KL divergence needs the reference for"
                    " the answers that meet in a micro-batch; remove it, or write loss_type: apo_zero_unpaired",
                )

    # imports that need torch are inside the hooks, because listings load this module too

    # ----------------------------------------------------------------------------------------------------- data

    @hookimpl(wrapper=True)
    def make_data(self, config: Any, recipe: Recipe) -> Generator[None, Data | None, Data | None]:
        made = yield
        if made is None or not isinstance(config, _DATA):
            return made
        from hooktrain_preference.collate import collate_pairs, collate_rewards, collate_unpaired
        from hooktrain_preference.rows import AnswerRows, with_answer_rows

        kinds = {RewardDataConfig: collate_rewards, KTODataConfig: collate_unpaired}
        made = attrs.evolve(made, collate=kinds.get(type(config), collate_pairs))
        if not _precomputes(recipe) and not isinstance(recipe.loss, KTOLossConfig):
            return made
        made = with_answer_rows(made)
        self._rows = [rows for rows in (made.train, *made.evaluation.values()) if isinstance(rows, AnswerRows)]
        return made

    @hookimpl(optionalhook=True)  # of hooktrain-sft, which a run may block
    def register_formats(self, config: Any) -> Mapping[str, Format] | None:
        if isinstance(config, PreferenceDataConfig):
            from hooktrain_preference.formats import preference_format

            return {"preference": preference_format()}
        if isinstance(config, KTODataConfig):
            from hooktrain_preference.unpaired import unpaired_format

            return {"unpaired": unpaired_format()}
        return None

    @hookimpl(optionalhook=True)  # of hooktrain-sft, which a run may block
    def render_example(self, example: Any, tokenizer: Any, config: Any) -> Rendered | None:
        if isinstance(config, PreferenceDataConfig):
            from hooktrain_preference.formats import render_pair

            return render_pair(example, tokenizer, config)
        if isinstance(config, KTODataConfig):
            from hooktrain_preference.unpaired import render_unpaired

            return render_unpaired(example, tokenizer, config)
        return None

    # --------------------------------------------------------------------------------------- loss and reference

    @hookimpl
    def make_loss(self, config: Any) -> Callable[..., LossSum] | None:
        if isinstance(config, RewardLossConfig):
            from hooktrain_preference.reward_loss import RewardLoss

            return RewardLoss(config)
        if isinstance(config, KTOLossConfig):
            from hooktrain_preference.kto_loss import KTOLoss
            from hooktrain_preference.metrics_by_label import MetricsByLabel

            self._by_label = MetricsByLabel()
            return KTOLoss(config, self._note)
        if not isinstance(config, PairLossConfig):
            return None
        from hooktrain_preference.pair_loss import PairLoss
        from hooktrain_preference.pair_losses import LOSSES

        return PairLoss(partial(LOSSES[type(config)], config), config.chunk_size, config.share_prompts)

    @hookimpl
    def make_models(
        self, model: Module, recipe: Recipe, tokenizer: Any, world: World, hooks: Any
    ) -> Mapping[str, ExtraModel] | None:
        if isinstance(recipe.loss, RewardLossConfig):
            from hooktrain_preference.reward_loss import require_scores

            require_scores(model)
        if not _needs_reference(recipe):
            return None
        from hooktrain_preference.reference import NAME, make_reference

        config = settings_of(recipe).reference
        made = make_reference(config, model, recipe, hooks=hooks, tokenizer=tokenizer, world=world)
        return None if made is None else {NAME: made}

    @hookimpl(trylast=True)  # after the check of the model, which may find that documents have to be padded
    def on_train_start(self, trainer: Trainer) -> None:
        if isinstance(trainer.recipe.loss, RewardLossConfig):
            self._check_scores(trainer)
        if not _needs_reference(trainer.recipe):
            return
        from hooktrain_preference.reference import NAME, describe, release

        trainer.say(describe(settings_of(trainer.recipe).reference, trainer.models.get(NAME)))
        if _precomputes(trainer.recipe):
            from hooktrain_preference.precompute import precompute

            precompute(trainer, self._rows, self._reference_identity(trainer), partial(self._by_reference, trainer))
            if NAME in trainer.models:
                release(trainer.models[NAME])

    @staticmethod
    def _check_scores(trainer: Trainer) -> None:
        """Compare a score with the model's own, of the first document of the training set."""
        import torch

        from hooktrain_preference.reward_loss import check_scores

        batch = trainer.on_device(trainer.data.collate([trainer.data.train[0]]))
        ids = batch["input_ids"][:, : batch["document_lengths"][0]]
        training = [module for module in trainer.model.modules() if module.training]
        trainer.model.eval()
        try:
            with torch.random.fork_rng([trainer.device] if trainer.device.type == "cuda" else []):
                trainer.strategy.compute(lambda: check_scores(trainer.model, ids), False)
        finally:
            for module in training:
                module.training = True

    @hookimpl(wrapper=True)
    def compute_loss(
        self, trainer: Trainer, model: Module, batch: Batch, denominator: float
    ) -> Generator[None, LossSum, LossSum]:
        if _needs_reference(trainer.recipe):
            from hooktrain_preference.kto_loss import KTOLoss
            from hooktrain_preference.pair_loss import PairLoss
            from hooktrain_preference.rows import REFERENCE

            if isinstance(trainer.loss, (PairLoss, KTOLoss)):
                if REFERENCE not in batch:
                    batch[REFERENCE] = self._by_reference(trainer, batch, denominator)
                if isinstance(trainer.recipe.loss, KTOLossConfig) and trainer.recipe.loss.estimates_kl:
                    batch["kl"] = self._kl(trainer, model, batch, denominator)
        return (yield)

    @staticmethod
    def _by_reference(trainer: Trainer, batch: Batch, denominator: float = 1.0) -> Tensor:
        """Return the reference's log-probabilities of the answers, shape (answers,)."""
        import torch
        from hooktrain_sft import are_padded, innermost, pad_documents

        from hooktrain_preference.reference import NAME, as_reference

        loss: Any = trainer.loss
        reference = trainer.models.get(NAME)
        with torch.no_grad():
            if reference is None:
                with as_reference(trainer.model):
                    found: Tensor = loss.answers(trainer.model, batch, denominator)
                return found
            if are_padded(innermost(trainer.model)) and not are_padded(innermost(reference)):
                pad_documents(innermost(reference))  # its documents would see each other as well
            found = loss.answers(reference, batch, denominator)
            return found

    def _kl(self, trainer: Trainer, model: Module, batch: Batch, denominator: float) -> Tensor:
        """Return the estimate of the KL divergence from answers to other prompts, over all ranks, shape ()."""
        import torch

        from hooktrain_preference.collate import MISMATCHED

        sums = torch.zeros(2, device=trainer.device)  # the logs of ratios, and their number
        if MISMATCHED in batch and denominator:
            other = trainer.strategy.to_device(batch[MISMATCHED])
            loss: Any = trainer.loss
            with torch.no_grad():
                ratios = loss.answers(model, other, denominator) - self._by_reference(trainer, other, denominator)
            sums = torch.stack([ratios.sum().float(), torch.full_like(ratios.sum(), len(ratios)).float()])
        total, number = trainer.strategy.sum_tensor(sums).unbind()
        return (total / number.clamp(min=1)).clamp(min=0)

    # -------------------------------------------------------------------------------------- metrics by label

    def _note(self, batch: Mapping[str, Any], rewards: Tensor, log_probs: Tensor) -> None:
        from hooktrain_preference.metrics_by_label import sums_by_label
        from hooktrain_preference.rows import SET

        if SET in batch and self._by_label is not None:  # not of a check of the model
            self._by_label.add(batch[SET], sums_by_label(batch["desirable"], rewards, log_probs), batch["label_counts"])

    @hookimpl
    def collect_metrics(self, trainer: Trainer) -> Mapping[str, Any] | None:
        return None if self._by_label is None else self._by_label.training(trainer.strategy)

    @hookimpl(wrapper=True)
    def run_evaluate(self, trainer: Trainer) -> Generator[None, Mapping[str, float], Mapping[str, float]]:
        if self._by_label is None:
            return (yield)
        self._by_label.forget(trainer.data.evaluation)  # what an evaluation that was abandoned has left
        found = yield
        return {**found, **self._by_label.evaluation(trainer.data.evaluation, trainer.strategy)} if found else found

    # --------------------------------------------------------------------------------------------------- resume

    def _reference_identity(self, trainer: Trainer) -> str:
        """Return the digest of the reference's weights, which do not change. Collective."""
        if self._identity is None:
            from hooktrain_preference.reference import weights_digest

            self._identity = weights_digest(trainer)
        return self._identity

    @hookimpl
    def collect_state(self, trainer: Trainer) -> Mapping[str, Any] | None:
        made: dict[str, Any] = {}
        if _needs_reference(trainer.recipe):
            made["reference"] = self._reference_identity(trainer)
        if self._by_label is not None and (sums := self._by_label.state(trainer.world)) is not None:
            made["by_label"] = sums
        return made or None

    @hookimpl
    def restore_state(
        self, trainer: Trainer, state: Mapping[str, Any], states: Sequence[Mapping[str, Any] | None]
    ) -> None:
        if self._by_label is not None:
            kept = [None if one is None else one.get("by_label") for one in states]
            self._by_label.restore(kept, trainer.world, trainer.device)
        if not _needs_reference(trainer.recipe) or "reference" not in state:
            return
        if self._reference_identity(trainer) != state["reference"] and "models.reference" not in _allowed(trainer):
            raise CheckpointError(
                "models.reference: its weights are others than in the run that saved the checkpoint, though the recipe"
                " names the same model; expected equal ones; put the model's files back, start a new run, or resume"
                " anyway with allow_changes: [models.reference]"
            )


def _allowed(trainer: Trainer) -> Sequence[str]:
    words = trainer.recipe.allow_changes
    return ("models.reference",) if {"*", "models", "models.reference"} & set(words) else ()
