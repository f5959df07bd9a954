"""The metrics: means of scores over generated answers, and sums over logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import Generation, HooktrainError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EvaluateMetric", "MeanScore", "Perplexity", "TopK"]


@attrs.frozen
class MeanScore:
    """Mean of a score over generated answers.

    Attributes:
        name: of the value.
        function: from an answer and its reference to a score, or None for an answer that does not count.
    """

    name: str
    function: Callable[[str, str], float | None]

    def score(self, generations: Sequence[Generation]) -> Mapping[str, float]:
        """Return the mean; nothing where no answer counts."""
        scores = [self.function(each.prediction, each.reference) for each in generations]
        counted = [score for score in scores if score is not None]
        return {self.name: math.fsum(counted) / len(counted)} if counted else {}


@attrs.frozen
class Perplexity:
    """Perplexity of the trained tokens."""

    def sum_logits(self, logits: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the summed cross-entropy and the number of tokens."""
        goal = logits.gather(1, targets[:, None])[:, 0]
        return {"entropy": (logits.logsumexp(1) - goal).double().sum(), "tokens": targets.new_tensor(len(targets))}

    def result(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        """Return the perplexity, infinite where it is beyond any number."""
        mean = sums["entropy"] / sums["tokens"]
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf}


@attrs.frozen
class TopK:
    """Share of tokens that are among the likeliest predictions."""

    k: int

    def sum_logits(self, logits: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the number of tokens that were predicted, and that of all."""
        best = logits.topk(min(self.k, logits.shape[1]), dim=1).indices  # (tokens, k)
        return {"right": (best == targets[:, None]).any(1).sum(), "tokens": targets.new_tensor(len(targets))}

    def result(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        """Return the share."""
        return {f"top_{self.k}_accuracy": sums["right"] / sums["tokens"]}


class EvaluateMetric:
    """A metric of the package ``evaluate`` from a local path.

    Args:
        path: of its folder or file.
        name: of its values; the folder's when omitted.

    Raises:
        HooktrainError: the package is not installed, or the path holds no metric.
    """

    def __init__(self, path: str, name: str | None) -> None:
        place = Path(path).expanduser()
        if not place.exists():
            raise HooktrainError(
                f"eval_metrics (type: evaluate): given '{path}', which does not exist, expected the folder or file of a"
                " metric on this machine; correct the path"
            )
        try:
            import evaluate
        except ModuleNotFoundError as problem:
            raise HooktrainError(
                "eval_metrics (type: evaluate): the package evaluate is not installed; run pip install"
                " 'hooktrain-evals[evaluate]'"
            ) from problem
        try:
            self._metric: Any = evaluate.load(str(place))
        except Exception as problem:  # a metric is a program
            raise HooktrainError(
                f"eval_metrics (type: evaluate): given '{path}', which cannot be loaded ({problem}); correct the path"
            ) from problem
        self.name = name or place.stem

    def score(self, generations: Sequence[Generation]) -> Mapping[str, float]:
        """Return every number that the metric computes."""
        predictions = [each.prediction for each in generations]
        found = self._metric.compute(predictions=predictions, references=[each.reference for each in generations])
        numbers = {key: value for key, value in (found or {}).items() if isinstance(value, (int, float))}
        if list(numbers) == [self.name]:
            return numbers
        return {f"{self.name}/{key}": value for key, value in numbers.items()}
