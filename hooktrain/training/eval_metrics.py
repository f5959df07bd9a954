"""The metrics of an evaluation besides its loss: over logits, which are not kept, and over generated answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hooktrain.errors import DataError, HooktrainError, PluginError
from hooktrain.protocols import GenerationMetric, LogitsMetric, StrategyDefaults, member
from hooktrain.types import Batch, Generation

if TYPE_CHECKING:
    from torch import Tensor

    from hooktrain.training.trainer import Trainer

__all__ = ["answers_in", "with_metrics"]

Example = tuple[list[int], list[int]]
"""Token ids of a prompt, and of the answer that is trained."""


def with_metrics(trainer: Trainer, losses: Mapping[str, float]) -> dict[str, float]:
    """Return what an evaluation found, with the recipe's metrics of each set added. Collective.

    Args:
        trainer: within an evaluation.
        losses: what ``run_evaluate`` returned; nothing where the evaluation was skipped.

    Raises:
        HooktrainError: no plugin gives the logits or the answers of the model, or two metrics have one name.
    """
    found = dict(losses)
    if not trainer.eval_metrics or not losses:
        return found
    for name in trainer.data.evaluation:
        values = _of_set(trainer, name)
        if values is None:
            trainer.say("the evaluation is skipped, and done when the run is resumed")
            return {}
        for metric, value in values:
            key = f"eval/{name}/{metric}"
            if key in found:
                raise PluginError(
                    f"eval_metrics: two values of this evaluation are called '{key}', expected different names; remove"
                    " one of the metrics, or rename it"
                )
            found[key] = float(value)
    return found


def _of_set(trainer: Trainer, name: str) -> list[tuple[str, float]] | None:
    """Return the values of all metrics of one set; None where the run is to end at once."""
    values: list[tuple[str, float]] = []
    over_logits = [each for each in trainer.eval_metrics if isinstance(each, LogitsMetric)]
    over_answers = [each for each in trainer.eval_metrics if isinstance(each, GenerationMetric)]
    if over_logits:
        sums = _sum_logits(trainer, name, over_logits)
        if sums is None:
            return None
        for metric, found in zip(over_logits, sums, strict=True):
            values += metric.result(found).items()
    if over_answers:
        generations = _generate(trainer, name)
        if generations is None:
            return None
        for each in over_answers:
            values += each.score(generations).items()
    return values


def _sum_logits(trainer: Trainer, name: str, metrics: Sequence[LogitsMetric]) -> list[dict[str, float]] | None:
    """Sum what each metric counts over a set and all ranks; no logits are kept."""
    kept: list[dict[str, Tensor]] = [{} for _ in metrics]

    def visit(logits: Tensor, targets: Tensor) -> None:
        for metric, sums in zip(metrics, kept, strict=True):
            for key, value in metric.sum_logits(logits, targets).items():
                sums[key] = sums[key] + value.double() if key in sums else value.double()

    for host_batch in trainer.eval_batches(name):
        if trainer.is_interrupted:
            return None
        targets = trainer.count(host_batch).num_target_tokens
        batch = trainer.on_device(host_batch)

        def compute(batch: Batch = batch, targets: int = targets) -> Any:
            return trainer.hooks.visit_logits(
                trainer=trainer, model=trainer.model, batch=batch, num_target_tokens=targets, visit=visit
            )

        if trainer.strategy.compute(compute, True) is None:
            raise HooktrainError(
                f"eval_metrics: no plugin gives the logits of a {type(trainer.model).__name__}, expected one that"
                " implements visit_logits; remove the metrics over logits, or install the plugin"
            )
    mine = [{key: float(value) for key, value in sums.items()} for sums in kept]
    everywhere = trainer.strategy.gather_objects(mine)
    return [
        {key: sum(theirs[number].get(key, 0.0) for theirs in everywhere) for key in _keys(everywhere, number)}
        for number in range(len(metrics))
    ]


def _keys(everywhere: Sequence[Sequence[Mapping[str, float]]], number: int) -> list[str]:
    return list(dict.fromkeys(key for theirs in everywhere for key in theirs[number]))


def _generate(trainer: Trainer, name: str) -> list[Generation] | None:
    """Generate an answer for each trained one of a set, on this rank for its share; returns those of all ranks."""
    settings, strategy = trainer.recipe.eval_generation, trainer.strategy
    examples = [found for batch in trainer.eval_batches(name) for found in answers_in(batch, name)]
    everywhere = strategy.gather_objects(len(examples))
    if not sum(everywhere):
        raise DataError(
            f"evaluation set '{name}': no example has a prompt and an answer; remove the metrics"
            " over answers from eval_metrics"
        )
    sharded = bool(member(strategy, StrategyDefaults, "shards_weights"))
    filler: list[Example] = examples[:1] or [([0], [0])]
    mine: list[list[Any]] = []
    for start in range(0, max(everywhere), settings.batch_size):
        if trainer.is_interrupted:
            return None
        batch = examples[start : start + settings.batch_size]
        if not batch and not sharded:
            continue
        made = _answers(trainer, batch or filler, settings, start)
        mine += [[each.prompt, each.prediction, each.reference] for each in made] if batch else []
    return [Generation(*each) for theirs in strategy.gather_objects(mine) for each in theirs]


def _answers(trainer: Trainer, batch: Sequence[Example], settings: Any, start: int) -> Sequence[Generation]:
    seed = trainer.recipe.seed + trainer.world.rank + start * trainer.world.world_size

    def compute() -> Any:
        return trainer.hooks.generate_answers(
            trainer=trainer, model=trainer.model, examples=batch, settings=settings, seed=seed
        )

    made: Sequence[Generation] | None = trainer.strategy.compute(compute, True)
    if made is None:
        raise HooktrainError(
            f"eval_metrics: no plugin generates answers with a {type(trainer.model).__name__}, expected one that"
            " implements generate_answers; remove the metrics over answers, or install the plugin"
        )
    if len(made) != len(batch):
        raise PluginError(
            f"generate_answers: returned {len(made)} answers for {len(batch)} prompts, expected one for each"
        )
    return made


def answers_in(batch: Batch, name: str) -> Iterator[Example]:
    """Yield the trained answers of a micro-batch, each with everything before it in its document.

    Args:
        batch: a micro-batch on the host, with ``input_ids`` and ``labels`` of shape (sequences, tokens).
        name: of the evaluation set, for errors.

    Raises:
        HooktrainError: the micro-batch has no labels, or the ranks share the tokens of a sequence.
    """
    if "shift_labels" in batch or "labels" not in batch or "input_ids" not in batch:
        why = (
            "the ranks share the tokens of a sequence (strategy.sequence_parallel)"
            if "shift_labels" in batch
            else f"its micro-batches hold {', '.join(batch)}, and no input_ids with labels"
        )
        raise HooktrainError(
            f"evaluation set '{name}': {why}, so its answers cannot be told from their prompts; remove the metrics over"
            " answers from eval_metrics"
        )
    ids, labels = batch["input_ids"], batch["labels"]
    documents: Iterable[tuple[Tensor, Tensor]]
    lengths = batch.get("document_lengths")
    if lengths is not None:
        documents = zip(ids.flatten().split(list(lengths)), labels.flatten().split(list(lengths)), strict=True)
    else:
        mask = batch.get("attention_mask", torch.ones_like(ids)).bool()
        documents = ((row[kept], goals[kept]) for row, goals, kept in zip(ids, labels, mask, strict=True))
    for tokens, goals in documents:
        found, trained = tokens.tolist(), [goal != -100 for goal in goals.tolist()]
        for start in range(1, len(found)):
            if trained[start] and (start == 1 or not trained[start - 1]):
                end = next((at for at in range(start, len(found)) if not trained[at]), len(found))
                yield found[:start], found[start:end]
