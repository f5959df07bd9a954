"""Check before the first step that a model trains on what it computes itself.

Two documents go through the run's own collate function, strategy and loss, and through the model alone, each in a
sequence of its own. Loss and gradients have to be the same, and no earlier logit may change with the last token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.modeling_outputs import CausalLMOutput

from hooktrain import HooktrainError, LossSum, ModelError
from hooktrain_sft.check_cache import read_result, result_file, write_result
from hooktrain_sft.compat import (
    attention_implementation,
    bidirectional_settings,
    has_adapter,
    has_dropout,
    input_embeddings,
    is_encoder_decoder,
    is_zero3_parameter,
    noise_settings,
    router_loss_coefficient,
    special_token_ids,
    vocabulary_size,
)
from hooktrain_sft.data.packed_dataset import IGNORE_INDEX
from hooktrain_sft.loss.model_inspection import accepted, innermost, logits_of
from hooktrain_sft.loss.padded_documents import are_padded, pad_documents

if TYPE_CHECKING:
    from hooktrain import Batch, Trainer
    from hooktrain_sft.data.packed_dataset import TokenSequence

__all__ = ["check_model"]

_TOKENS = 16
"""Tokens of each of the two documents."""
_EXACT = (torch.float32, torch.float64)


@attrs.frozen
class _Limits:
    """Largest relative differences that the order of additions explains."""

    loss: float
    gradient: float
    logits: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> _Limits:
        return cls(2e-5, 1e-3, 1e-4) if dtype in _EXACT else cls(2e-2, 0.2, 5e-2)


@attrs.frozen
class _Result:
    """Loss of the documents, and its gradients with respect to their embeddings and to adapters."""

    loss: float
    gradients: tuple[Tensor, ...] = ()

    def difference(self, other: _Result, limits: _Limits) -> str:
        """Return how this result differs from the model's own; an empty text where it does not."""
        if not np.isfinite(other.loss):
            return ""  # which training itself reports
        if not abs(self.loss - other.loss) <= limits.loss * max(abs(other.loss), 1e-6):
            return f"its loss is {self.loss:.6g}, and {other.loss:.6g} by the model's own forward pass"
        for found in self.gradient_differences(other):
            if not found <= limits.gradient:
                return f"the gradients differ by {found:.1%} from those of the model's own forward pass"
        return ""

    def gradient_differences(self, other: _Result) -> list[float]:
        """Return the relative difference of each gradient of the same shape."""
        pairs = zip(self.gradients, other.gradients, strict=False)
        return [float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs if a.shape == b.shape]


def check_model(trainer: Trainer) -> None:
    """Compare loss and gradients of two documents with the model's own forward pass, and check that it is causal.

    Documents that cannot share a sequence are padded from then on. All ranks take part; no random numbers are drawn,
    and no gradient is left behind. The loss inspects the model in its first call, so that it refuses one before the
    first step.

    Args:
        trainer: with all parts built; its data are of this plugin. A result that an earlier run has kept is used.

    Raises:
        ModelError: the model sees later tokens or other documents, or its loss is not that of its own forward pass.
    """
    probe = _Probe(trainer)
    if any(parameter.is_meta for parameter in probe.model.parameters()):
        with probe.undisturbed():  # shapes alone, of which nothing can be compared; the loss inspects the model
            probe.result(trainer.model, probe.batch(probe.documents), gradients=False)
        return
    path = result_file(trainer, probe.model, [probe.packs, probe.several, str(probe.dtype)])
    known = trainer.strategy.gather_objects(read_result(path) if trainer.world.is_main else None)[0]
    if known is not None:
        if known["padded"]:
            pad_documents(probe.model)
            probe.say_padded(known["padded"])
        return
    with probe.undisturbed():
        padded = probe.run()
    if trainer.world.is_main:
        write_result(path, {"padded": padded})


class _Probe:
    """One check of a trainer's model."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.model: Any = innermost(trainer.model)
        self.name = type(self.model).__name__
        self.embedding = input_embeddings(self.model)
        self.packs = bool(trainer.recipe.data.pack_samples)
        most = max(trainer.recipe.micro_batch_size, trainer.recipe.eval_micro_batch_size or 0)
        self.several = self.packs or most > 1 or bool(trainer.recipe.data.together)
        self.dtype = _computes_in(trainer)
        self.exact, self.limits = self.dtype in _EXACT, _Limits.of(self.dtype)
        self.same = 1e-5 if self.exact else 1e-3  # of two losses by the same kernels
        self.documents = _documents(trainer, 2 if self.several else 1)
        trained = [p for p in trainer.model.parameters() if p.requires_grad] if has_adapter(trainer.model) else []
        self.adapters = [] if any(isinstance(p, DTensor) or is_zero3_parameter(p) for p in trained) else trained
        self.compared = False

    def run(self) -> str:
        """Check the model; return why documents are padded from now on, an empty text where they are not."""
        own, why = self.own(), ""
        problem = self.difference(own)
        if problem and own is not None and not self.exact:
            self.limits = attrs.evolve(self.limits, gradient=max(self.limits.gradient, 2 * self.noise(own)))
            problem = self.difference(own)
        if problem and self.several and not are_padded(self.model):
            pad_documents(self.model)
            why, problem = problem, self.difference(own)
        if problem:
            raise ModelError(self.refusal(problem))
        self.check_training_mode()
        if why:
            self.say_padded(why)
        return why

    def say_padded(self, why: str) -> None:
        self.trainer.say(
            f"{self.name}: documents of a micro-batch are padded and masked, each in a sequence of its own, since in"
            f" one sequence {why}" + ("; data.pack_samples: false needs less memory then" if self.packs else "")
        )

    # ------------------------------------------------------------------------------------------ the two results

    def own(self) -> _Result | None:
        """Return what the model computes itself; None where the loss cannot be computed from its logits.

        Raises:
            ModelError: an earlier logit changes with the last token.
        """
        if is_encoder_decoder(self.model):
            return None  # the loss says what is wrong with it
        ids = np.stack([one["input_ids"] for one in [*self.documents, self.documents[0]]])
        ids[-1, -1] = next((id_ for id_ in ids.flat if id_ != ids[-1, -1]), 0)
        own = _OwnLogits(self.trainer.model, self.model, torch.from_numpy(ids).to(self.trainer.device))
        try:
            result = self.result(own, self.batch(self.documents))
        except HooktrainError:
            raise
        except Exception as problem:  # losses and models of others may need more than logits and ids
            if own.problem is problem:
                raise ModelError(
                    f"model: {self.name} cannot be called with input_ids alone ({_first_line(problem)}), expected a"
                    " causal language model of text; give another model.name_or_path"
                ) from problem
            return None
        if own.later is not None and own.later > self.limits.logits:
            settings = bidirectional_settings(self.model)
            remedy = " and ".join(f"model.hf_config_kwargs.{name}: {value}" for name, value in settings.items())
            raise ModelError(
                f"model: {self.name} sees later tokens (with the last token, the logits of earlier ones change by"
                f" {own.later:.1%}), so that it would learn to copy its input; expected a causal language model;"
                f" {f'write {remedy}, or ' if remedy else ''}give another model.name_or_path"
            )
        return result

    def noise(self, own: _Result) -> float:
        """Return how far rounding errors of the embeddings change the gradients, the same on all ranks.

        In bfloat16 that is more than the gradients themselves for some models and texts.
        """
        found = []
        for shift in (0, 1):

            def rounded(module: nn.Module, args: Any, embedded: Tensor, shift: int = shift) -> Tensor:
                signs = torch.arange(shift, shift + embedded.shape[-1], device=embedded.device) % 2 * 2 - 1
                return (embedded.float() * (1 + signs * torch.finfo(self.dtype).eps / 2)).to(embedded.dtype)

            hook = self.embedding.register_forward_hook(rounded) if self.embedding is not None else None
            try:
                other = self.own()
            finally:
                if hook is not None:
                    hook.remove()
            found += [] if other is None else other.gradient_differences(own)
        return max((each for rank in self.trainer.strategy.gather_objects(found) for each in rank), default=0.0)

    def difference(self, own: _Result | None) -> str:
        """Return how the run's own computation differs from the model's; an empty text where it does not."""
        self.compared = own is not None
        try:
            ours = self.result(self.trainer.model, self.batch(self.documents))
            problem = (ours.difference(own, self.limits) if ours and own else "") or self.seen()
        except HooktrainError:
            raise
        except Exception as failure:  # models have errors of all kinds for positions and masks that they do not know
            if own is None:
                raise
            problem = f"it fails with {type(failure).__name__} ({_first_line(failure)})"
        # ranks that decide differently would wait for each other
        return next((text for text in self.trainer.strategy.gather_objects(problem) if text), "")

    def batch(self, documents: list[TokenSequence]) -> Batch:
        """Return a micro-batch of documents as the run makes it."""
        if self.packs:
            documents = [{name: np.concatenate([one[name] for one in documents]) for name in documents[0]}]
        return self.trainer.on_device(self.trainer.data.collate(documents))

    def result(self, model: Any, batch: Batch, gradients: bool = True) -> _Result | None:
        """Return the loss of a model and its gradients; None where a loss has no total."""
        trainer = self.trainer
        denominator = int((batch["labels"][:, 1:] != -100).sum())
        leaves: list[Tensor] = []

        def cut(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return embedded  # the loss inspects the model in its first call
            leaves.append(embedded.detach().requires_grad_())
            return leaves[-1].clone()  # some models scale it in place

        # the loss of routers is that of a complete micro-batch, and is added where there are gradients
        wanted = gradients and router_loss_coefficient(self.model) is None and self.embedding is not None
        hook = self.embedding.register_forward_hook(cut) if wanted and self.embedding is not None else None
        try:
            with torch.set_grad_enabled(wanted):
                loss = trainer.strategy.compute(lambda: trainer.loss(model, batch, denominator), False)
        finally:
            if hook is not None:
                hook.remove()
        if not isinstance(loss, LossSum):
            return None
        total = float(loss.total.detach())
        if not loss.total.requires_grad or len(leaves) != 1:
            return _Result(total)
        of_tokens, *of_adapters = torch.autograd.grad(loss.total, [leaves[0], *self.adapters], allow_unused=True)
        flat = [g.flatten().float() for g in of_adapters if g is not None]
        found = [of_tokens.flatten(0, -2)[: _TOKENS * len(self.documents)].float()] if of_tokens is not None else []
        return _Result(total, (*found, *([torch.cat(flat)] if flat else [])))

    def seen(self) -> str:
        """Return how the loss of a document changes with the one before it; an empty text where it does not.

        In less than float32 this finds far less than the comparison with the model's own forward pass.
        """
        if not self.several or (self.exact and self.compared):
            return ""
        one, last, other = _documents(self.trainer, 3)
        losses = []
        for first in (one, other):
            batch = self.batch([_unlabelled(first), last])
            if len(batch["labels"]) > 1:
                return ""
            found = self.result(self.trainer.model, batch, gradients=False)
            losses += [] if found is None or not np.isfinite(found.loss) else [found.loss]
        # experts may add in another order; attention to another document changes the loss far more
        if len(losses) < 2 or abs(losses[0] - losses[1]) <= self.same * abs(losses[0]):
            return ""
        after = f"the loss of one is {losses[0]:.6g} after one and {losses[1]:.6g} after another"
        return f"documents see each other ({after})"

    def check_training_mode(self) -> None:
        """Raise ModelError where a model without dropout computes something else in training than in evaluation."""
        if not self.compared or has_dropout(self.trainer.model):
            return
        if self.adapters and not noise_settings(self.model):
            return  # some adapters draw at random in training, such as those of PVERA
        losses = []
        for training in (False, True):
            self.trainer.model.train(training)
            found = self.result(self.trainer.model, self.batch(self.documents), gradients=False)
            losses += [] if found is None else [found.loss]
        self.trainer.model.eval()
        if len(losses) == 2 and abs(losses[1] - losses[0]) > self.same * abs(losses[0]):
            noise = " and ".join(f"model.hf_config_kwargs.{name}: 0" for name in noise_settings(self.model))
            raise ModelError(
                f"model: {self.name} has no dropout, but its loss is {losses[1]:.6g} in training and {losses[0]:.6g} in"
                " evaluation, as where a router draws experts at random; expected the same;"
                f" {f'write {noise}, or ' if noise else ''}give another model.name_or_path"
            )

    def refusal(self, problem: str) -> str:
        """Return the error for a model that trains on something else than it computes itself."""
        attention = attention_implementation(self.model) or "its own"
        if self.several:
            return (
                f"model.attn_implementation: with '{attention}', documents of a micro-batch of {self.name} do not give"
                f" what each gives alone: {problem}; expected the same; choose another attn_implementation, or write"
                " data.pack_samples: false and micro_batch_size: 1"
            )
        return (
            f"model: {self.name} with attention '{attention}' cannot be trained: {problem}; expected the same; try"
            " loss.all_logits: true or another model.attn_implementation"
        )

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put the model into evaluation mode, and leave modes, gradients and random numbers as they were."""
        trainer = self.trainer
        modes = {module: module.training for module in trainer.model.modules()}
        try:
            trainer.model.eval()
            with torch.random.fork_rng([trainer.device] if trainer.device.type == "cuda" else []):
                yield
        finally:
            for module, training in modes.items():
                module.training = training
            trainer.strategy.zero_grad()  # a strategy may have left zeros


class _OwnLogits(nn.Module):
    """The model's own logits of documents, from ids alone, for any batch that contains them.

    Attributes:
        later: the largest change of the first document's logits with its last token, as a share of the largest logit;
            None before the first call.
        problem: what the model raised.
    """

    def __init__(self, model: Any, bare: Any, ids: Tensor) -> None:
        """Keep the ids of the documents and of the first with another last token, shape (documents + 1, tokens)."""
        super().__init__()
        inputs = accepted(bare.forward, {"input_ids": ids})
        self._call: Callable[[], Tensor] = lambda: logits_of(model(**inputs))
        self.later: float | None = None
        self.problem: Exception | None = None

    def forward(self, input_ids: Tensor, **others: Any) -> CausalLMOutput:
        """Return logits of shape (sequences, tokens, vocabulary) as a transformers model does."""
        try:
            logits = self._call()
        except Exception as problem:
            self.problem = problem
            raise
        own, changed = logits[:-1], logits[-1]
        with torch.no_grad():
            self.later = float((changed[:-1] - own[0, :-1]).abs().max() / own.abs().max().clamp(min=1e-12))
        made: Any = own.reshape(*input_ids.shape, -1)
        return CausalLMOutput(logits=made)


def _documents(trainer: Trainer, count: int) -> list[TokenSequence]:
    """Make documents of tokens that are not special, all of them trained but the first."""
    sizes = [vocabulary_size(innermost(trainer.model)), vocabulary_size(trainer.tokenizer)]
    special = special_token_ids(trainer.tokenizer)
    usable = [token for token in range(min(filter(None, sizes), default=2)) if token not in special] or [0]
    ids = np.random.default_rng(0).choice(np.array(usable, np.int64), (count, _TOKENS))
    labels = ids.copy()
    labels[:, 0] = IGNORE_INDEX
    return [{"input_ids": ids[n], "labels": labels[n], "position_ids": np.arange(_TOKENS)} for n in range(count)]


def _unlabelled(document: TokenSequence) -> TokenSequence:
    return {**document, "labels": np.full(_TOKENS, IGNORE_INDEX, np.int64)}


def _first_line(problem: Exception) -> str:
    return str(problem).strip().partition("\n")[0][:200]


def _computes_in(trainer: Trainer) -> torch.dtype:
    """Return the type of the run's matrix products."""
    device = trainer.device.type

    def dtype() -> torch.dtype:
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return next((p.dtype for p in trainer.model.parameters() if p.is_floating_point()), torch.float32)

    with torch.no_grad():
        return trainer.strategy.compute(dtype, True)
