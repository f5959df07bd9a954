"""Losses that run the LM head on trained positions only and keep no logits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from hooktrain import LossSum, LossTerm, ModelError
from hooktrain_sft.loss.chunked_linear import Sums, logits_loss
from hooktrain_sft.loss.config import CrossEntropyConfig
from hooktrain_sft.loss.lm_head import HeadedForward, HeadLoss
from hooktrain_sft.loss.logit_transform import LogitTransform
from hooktrain_sft.loss.model_inspection import accepted, innermost, logit_transform, logits_of
from hooktrain_sft.loss.model_outputs import Extras
from hooktrain_sft.loss.padded_documents import documents_given
from hooktrain_sft.loss.router_loss import RouterLoss
from hooktrain_sft.loss.supervised_positions import Targets, supervised
from hooktrain_sft.loss.token_loss import CrossEntropy, Differentiated, TokenLoss

__all__ = ["SelectiveLoss", "per_token"]

MakeHeadLoss = Callable[[LogitTransform, nn.Module], HeadLoss | None]
Runner = Callable[[nn.Module, Mapping[str, Any], Targets, Extras], tuple[Tensor, Sums]]


def per_token(function: Callable[[Tensor, Tensor], Tensor], chunk_size: int | None = None) -> SelectiveLoss:
    """Make a loss from a function of logits, for ``make_loss``; selection, chunks, gradients and metrics are added.

    Args:
        function: from logits in single precision, shape (tokens, vocabulary), and token ids, shape (tokens,), to the
            loss of each token, shape (tokens,); differentiated by autograd, a chunk at a time.
        chunk_size: most tokens at a time; None chooses by the size of the vocabulary.
    """
    return SelectiveLoss(Differentiated(function), chunk_size)


class SelectiveLoss:
    """``loss(model, batch, denominator)``: the sum of a loss over the trained tokens.

    A transformers model stops before its LM head, which then runs on the trained positions only. Any other model is
    called unchanged, and must return logits.

    Args:
        token_loss: the loss of a chunk of tokens from their logits.
        chunk_size: most tokens at a time; None chooses by the size of the vocabulary.
        make_head_loss: called once for each model; returns a fused loss for a plain linear head, or None.
        all_logits: whether every model is called unchanged.
    """

    def __init__(
        self,
        token_loss: TokenLoss,
        chunk_size: int | None = None,
        make_head_loss: MakeHeadLoss | None = None,
        all_logits: bool = False,
    ) -> None:
        self._token_loss, self._chunk_size = token_loss, chunk_size
        self._z_loss = token_loss.z_loss if isinstance(token_loss, CrossEntropy) else 0.0
        self._make_head_loss, self._all_logits = make_head_loss, all_logits
        self._runners: weakref.WeakKeyDictionary[nn.Module, Runner] = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, config: CrossEntropyConfig, hook: Callable[..., HeadLoss | None] | None = None) -> SelectiveLoss:
        """Make the loss of a config; ``hook`` is ``make_head_loss``."""
        token_loss = CrossEntropy(config.label_smoothing, config.z_loss, config.weighted_by_probability)
        if hook is None:
            return cls(token_loss, config.chunk_size, all_logits=config.all_logits)
        return cls(
            token_loss,
            config.chunk_size,
            lambda transform, model: hook(config=config, transform=transform, model=model),
            config.all_logits,
        )

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], denominator: float) -> LossSum:
        """Run the model on a micro-batch.

        Args:
            model: the model, wrapped or not.
            batch: ``input_ids``, ``labels`` (not shifted, -100 for no loss) and other inputs of the model, shape
                (sequences, tokens), on the model's device.
            denominator: the number of trained tokens, the first of each sequence excluded; a host number, so that
                nothing here waits for the device. With ``token_weights`` in the batch, which are those of the labels
                and not shifted either, it is the sum of these, and the batch has ``num_target_tokens``.

        Returns:
            The sum of the loss, zero with a graph when ``denominator`` is 0; the sums of ``token_accuracy``,
            ``entropy`` (of the predictions, in nats), and ``cross_entropy`` where the loss is another one; the term
            ``router_loss`` where a mixture of experts has one, and ``z_loss``, which the total includes, where the loss
            has one; and the outputs that ``batch["needed_outputs"]`` names.

        Raises:
            ModelError: the model gives no logits, or is an encoder-decoder.
        """
        bare, inputs = innermost(model), dict(batch)
        extras, targets = Extras(tuple(inputs.pop("needed_outputs", ()))), Targets.of(inputs, denominator)
        extras.require_shape(bare)
        if bare not in self._runners:
            self._runners[bare] = self._runner(bare, inputs)
        with documents_given(inputs):
            total, sums = self._runners[bare](model, inputs, targets, extras)
        if "z_loss" in sums:  # which the total includes, as it is computed with it
            extras.terms["z_loss"] = LossTerm(sums.pop("z_loss"), self._z_loss, in_loss=True)
        unit = "tokens" if targets.weights is None else "weighted tokens"
        return LossSum(total, denominator, sums, unit, extras.terms, extras.outputs)

    def _runner(self, bare: nn.Module, batch: Mapping[str, Any]) -> Runner:
        transform, router = logit_transform(bare, batch), RouterLoss.of(bare)
        if router is not None and "sequence_parallel" in batch:
            raise ModelError(
                f"strategy.sequence_parallel: {type(bare).__name__} has a loss that balances its experts over all"
                " tokens of a sequence, which no rank has; remove sequence_parallel"
            )
        if transform is None or self._all_logits:
            return _FromLogits(self._token_loss, router)
        fused = None if self._make_head_loss is None else self._make_head_loss(transform, bare)
        return HeadedForward(bare, self._token_loss, transform, self._chunk_size, fused, router)


class _FromLogits:
    """Calls a model for all of its logits."""

    def __init__(self, token_loss: TokenLoss, router: RouterLoss | None) -> None:
        self._token_loss, self._router = token_loss, router

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Any], targets: Targets, extras: Extras
    ) -> tuple[Tensor, Sums]:
        inputs = {name: value for name, value in batch.items() if "labels" not in name}
        taken = accepted(innermost(model).forward, {**inputs, **extras.arguments(headed=False)})
        if "sequence_parallel" in inputs.keys() - taken.keys():
            raise ModelError(
                f"strategy.sequence_parallel: {type(innermost(model)).__name__} cannot share the tokens of a"
                " sequence between ranks; remove it"
            )
        output = model(**taken)
        logits = logits_of(output)
        positions, goals, weights = supervised(
            batch.get("labels"), targets.number, batch.get("shift_labels"), targets.weights
        )
        selected = logits.reshape(-1, logits.shape[-1]).index_select(0, positions)
        total, sums = logits_loss(selected, goals, self._token_loss, weights)
        extras.take(output)
        extras.add_router(self._router, output, total, targets.denominator)
        return total, sums
