"""The default loop: the engine's implementations of the loop hooks. Each can be replaced or wrapped by a plugin.

The events around these loop hooks (``on_step_start``, ``on_step_end``, ...) are emitted by the trainer, so that
replacing a loop hook silences nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain.errors import DataError
from hooktrain.markers import hookimpl
from hooktrain.recipe.model import Recipe
from hooktrain.types import (
    Batch,
    BatchCounts,
    Data,
    Dataset,
    LossSum,
    OptimizerStep,
    StepOutput,
    TrainerState,
    TrainerType,
    World,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from hooktrain.training.trainer import Trainer

__all__ = ["MODEL_TYPE", "Loop"]

MODEL_TYPE = "model"
"""The trainer type of a recipe that builds a model and trains nothing, as exports and conversations need it."""


def _counts(targets: int, tokens: int, labels: Tensor, weights: Tensor | None) -> BatchCounts:
    """Count a micro-batch whose labels may have weights; both shifted, shape (sequences, tokens)."""
    if weights is None:
        return BatchCounts(targets, tokens, targets)
    used = weights[labels != -100].double()
    if not (used.isfinite() & (used >= 0)).all():
        raise DataError(
            "micro-batch: token_weights holds negative numbers or some that are not finite, expected 0 or positive"
            " numbers; correct the collate function"
        )
    return BatchCounts(float(used.sum()), tokens, targets, "weighted tokens")


class Loop:
    """The default loop hooks."""

    @hookimpl
    def register_trainer_types(self) -> Mapping[str, TrainerType]:
        return {MODEL_TYPE: TrainerType({}, "a model and no training", listed=False)}

    @hookimpl(trylast=True)
    def run_train(self, trainer: Trainer) -> TrainerState:
        for epoch in trainer.epochs:
            trainer.epoch(epoch)
            if trainer.should_stop:
                break
        return trainer.state

    @hookimpl(trylast=True)
    def run_epoch(self, trainer: Trainer) -> int:
        steps = 0
        for batches in trainer.train_batches:
            trainer.step(batches)
            steps += 1
            if trainer.should_stop or trainer.leaves_epoch:
                break
        return steps

    @hookimpl(trylast=True)
    def run_step(self, trainer: Trainer, batches: Sequence[Batch]) -> StepOutput:
        total: Tensor | None = None
        for batch in batches:
            loss = trainer.microbatch(batch)
            total = loss.total if total is None else total + loss.total
        assert total is not None, "a window holds at least one micro-batch"
        update = trainer.optimizer_step()
        return StepOutput(total, update.grad_norm, update.stepped)

    @hookimpl(trylast=True)
    def count_batch(self, batch: Batch) -> BatchCounts:
        labels, mask, shifted = batch.get("labels"), batch.get("attention_mask"), batch.get("shift_labels")
        if shifted is not None:
            targets = int((shifted != -100).count_nonzero())
            return _counts(targets, int(batch["tokens"]), shifted, batch.get("shift_token_weights"))
        if labels is not None:
            # the first label of a row has no token before it that could predict it
            targets = int((labels[:, 1:] != -100).count_nonzero()) if labels.dim() > 1 else labels.shape[0]
        elif "denominator" in batch:
            targets = 0
        else:
            raise DataError(
                f"micro-batch: given {', '.join(batch) or 'nothing'}, expected 'labels' or 'denominator' among them;"
                " have the collate function add one of them, or implement the hook count_batch"
            )
        if "tokens" in batch:
            tokens = int(batch["tokens"])
        elif mask is not None:
            tokens = int(mask.sum())
        else:
            tokens = batch["input_ids"].numel() if "input_ids" in batch else targets
        if "denominator" in batch:
            return BatchCounts(float(batch["denominator"]), tokens, targets, batch.get("counts", "tokens"))
        if labels is not None and "token_weights" in batch:
            return _counts(targets, tokens, labels[:, 1:], batch["token_weights"][:, 1:])
        return BatchCounts(targets, tokens, targets)

    @hookimpl(trylast=True)
    def compute_loss(self, trainer: Trainer, model: Module, batch: Batch, denominator: float) -> LossSum:
        return trainer.loss(model, batch, denominator)

    @hookimpl(trylast=True)
    def run_backward(self, trainer: Trainer, loss: Tensor) -> Tensor:
        return trainer.strategy.backward(loss, trainer.is_last_microbatch)

    @hookimpl(trylast=True)
    def run_optimizer_step(self, trainer: Trainer) -> OptimizerStep:
        return trainer.strategy.optimizer_step(
            trainer.recipe.gradient_clipping, trainer.wants_grad_norm, trainer.recipe.on_nan == "skip"
        )

    @hookimpl(trylast=True)
    def run_evaluate(self, trainer: Trainer) -> Mapping[str, float]:
        import torch

        from hooktrain.training.loss_terms import agreed_sums

        metrics: dict[str, float] = {}
        for name in trainer.data.evaluation:
            sums, denominator, counted = {"loss": torch.zeros((), device=trainer.device)}, 0.0, Counter[str]()
            for host_batch in trainer.eval_batches(name):
                if trainer.is_interrupted:
                    trainer.say("the evaluation is skipped, and done when the run is resumed")
                    return {}
                counts = trainer.count(host_batch)
                loss = trainer.loss_of(trainer.on_device(host_batch), counts)
                terms = {key: term.total for key, term in loss.terms.items()}
                for key, value in {"loss": loss.total, **loss.sums, **terms}.items():
                    sums[key] = sums[key] + value.float() if key in sums else value.float()
                denominator += counts.denominator
                counted.update(counts.terms)
            (everywhere,) = trainer.strategy.sum_numbers([denominator])
            if everywhere == 0:
                raise DataError(f"evaluation set '{name}': nothing is trained, so it has no loss; check its masks")
            sums, own = agreed_sums(trainer, sums, counted)
            found = trainer.strategy.sum_tensor(torch.stack(list(sums.values()))).tolist()
            means = {key: (value, own.get(key, everywhere)) for key, value in zip(sums, found, strict=True)}
            metrics |= {f"eval/{name}/{key}": value / divisor for key, (value, divisor) in means.items() if divisor}
        return metrics

    @hookimpl(trylast=True)
    def save_checkpoint(self, trainer: Trainer) -> Sequence[Path]:
        trainer.finite_weights.require(trainer)  # here, as a wrapper may have exchanged them
        saved = [engine.save(trainer) for engine in trainer.due_checkpoint_engines]
        return [path for path in saved if path is not None]

    @hookimpl(trylast=True)
    def load_checkpoint(self, trainer: Trainer, path: Path) -> Path:
        for engine in trainer.checkpoint_engines:
            if engine.can_load(path):
                engine.load(trainer, path)
                return path
        from hooktrain.training.checkpointing import no_checkpoint  # with torch, which listings do without

        raise no_checkpoint(path)

    @hookimpl(trylast=True)
    def make_loader(self, dataset: Dataset, data: Data, recipe: Recipe, world: World) -> Any:
        from hooktrain.training.dataloader import WindowLoader

        return (data.loader or WindowLoader)(dataset, data, recipe, world)
