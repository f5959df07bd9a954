"""A teacher beside the model: its hidden states at the trained positions, and its LM head for them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hooktrain_sft.data.collate import collate_flat
from hooktrain_sft.data.documents import Documents
from hooktrain_sft.data.packed_dataset import PackedDataset
from hooktrain_sft.distill.divergence import BesideTeacher
from hooktrain_sft.distill.loss import require_complete_sequences, take_teacher
from hooktrain_sft.loss.chunked_linear import Sums
from hooktrain_sft.loss.lm_head import HeadedForward
from hooktrain_sft.loss.logit_transform import LogitTransform
from hooktrain_sft.loss.model_inspection import (
    accepted,
    innermost,
    is_plain_linear,
    is_sharded_linear,
    logit_transform,
    logits_of,
)
from hooktrain_sft.loss.padded_documents import are_padded, documents_given, pad_documents
from hooktrain_sft.loss.supervised_positions import Targets, supervised
from hooktrain_sft.loss.token_loss import CrossEntropy

__all__ = ["TeacherForward"]

_CHECKED = 16
"""Tokens of each of two documents with which a teacher is checked."""

Runner = Callable[[nn.Module, Mapping[str, Any], Targets, bool], BesideTeacher]
Head = Callable[[Tensor], Tensor]


class TeacherForward:
    """``forward(teacher, batch, denominator)``: what a teacher says about the trained tokens of a micro-batch.

    A transformers model stops before its LM head, which the loss calls a chunk at a time. Documents that the teacher
    cannot keep apart in a sequence are padded, each in a sequence of its own.

    Args:
        say: called with messages for the user.
    """

    def __init__(self, say: Callable[[str], None] = lambda message: None) -> None:
        self._say = say
        self._runners: weakref.WeakKeyDictionary[nn.Module, Runner] = weakref.WeakKeyDictionary()

    def __call__(
        self, teacher: nn.Module, batch: Mapping[str, Any], denominator: float, copies_head: bool = False
    ) -> BesideTeacher:
        """Run the teacher, without gradients.

        Args:
            teacher: the teacher, wrapped or not, in evaluation mode.
            batch: the micro-batch of the loss.
            denominator: of the loss.
            copies_head: whether the weight of the head may be gone after the call, as where ranks share it.

        Raises:
            ModelError: the teacher gives no logits, or ranks share the tokens of a sequence.
        """
        bare, inputs = innermost(teacher), dict(batch)
        require_complete_sequences(inputs)
        targets = Targets.of(inputs, denominator)._replace(weights=None)
        take_teacher(inputs, 0)
        inputs.pop("needed_outputs", None)
        with torch.no_grad():
            if bare not in self._runners:
                self._runners[bare] = _runner(bare, inputs)
                self._keep_documents_apart(teacher, bare, inputs["input_ids"].device)
            with documents_given(inputs):
                return self._runners[bare](teacher, inputs, targets, copies_head)

    def _keep_documents_apart(self, teacher: nn.Module, bare: nn.Module, device: torch.device) -> None:
        """Pad the teacher's documents from now on where one of them gives something else after another one."""
        if are_padded(bare):
            return
        found = []
        for first in (1, 2):
            batch = _two_documents([first] * _CHECKED, range(3, 3 + _CHECKED), device)
            with documents_given(batch):
                targets = Targets(_CHECKED - 1, _CHECKED - 1)
                found.append(self._runners[bare](teacher, batch, targets, False).values)
        exact = found[0].dtype in (torch.float32, torch.float64)
        one, other = (each.float() for each in found)
        if float((one - other).norm()) > (1e-4 if exact else 5e-2) * float(one.norm()):
            pad_documents(bare)
            self._say(
                f"teacher: {type(bare).__name__} does not keep the documents of a sequence apart; they are padded, each"
                " in a sequence of its own"
            )


def _two_documents(first: Sequence[int], last: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Return a micro-batch of two documents in one sequence, the last of which is trained."""
    parts = [(np.array(ids, np.int32), np.full(len(ids), trained)) for ids, trained in ((first, False), (last, True))]
    dataset = PackedDataset(Documents.of(parts))
    batch = collate_flat([dataset[0], dataset[1]])
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _runner(bare: nn.Module, batch: Mapping[str, Any]) -> Runner:
    transform = logit_transform(bare, batch)
    return _teacher_logits if transform is None else _HeadedTeacher(bare, transform).run


def _teacher_logits(teacher: nn.Module, batch: Mapping[str, Any], targets: Targets, copies_head: bool) -> BesideTeacher:
    """Call a teacher for all of its logits, of which those at the trained positions are kept."""
    inputs = {name: value for name, value in batch.items() if "labels" not in name}
    logits = logits_of(teacher(**accepted(innermost(teacher).forward, inputs)))
    positions, _, _ = supervised(batch["labels"], targets.number)
    values = logits.reshape(-1, logits.shape[-1]).index_select(0, positions)
    return BesideTeacher(values, lambda part: part.to(torch.promote_types(part.dtype, torch.float32), copy=True))


class _HeadedTeacher(HeadedForward):
    """Returns hidden states in the place of a loss, and the head for them."""

    def __init__(self, model: nn.Module, transform: LogitTransform) -> None:
        super().__init__(model, CrossEntropy(), transform, None, None, None)
        self._copies_head = False

    def run(self, teacher: nn.Module, batch: Mapping[str, Any], targets: Targets, copies_head: bool) -> BesideTeacher:
        self._copies_head = copies_head
        hidden, _ = self(teacher, batch, targets)
        head: Head = self._made
        del self._made
        return BesideTeacher(hidden, head)

    def _loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Sums]:
        head: Any = self._head
        if is_plain_linear(head):
            self._made = self._linear(head, hidden, self._copies_head)
        elif is_sharded_linear(head):
            self._gathered(head, hidden, targets, None)
        else:
            device = hidden.device.type
            enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
            autocast = partial(torch.autocast, device, dtype, enabled)
            self._made = partial(_called_head, head, self._transform, autocast)
        return hidden, {}

    def _fused(self, hidden: Tensor, head: Any, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Sums]:
        """Keep the weight of a head that is gathered for this call only."""
        self._made = self._linear(head, hidden, True)
        return hidden.new_zeros(()), {}

    def _linear(self, head: Any, hidden: Tensor, copies: bool) -> Head:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        weight = head.weight.detach().to(dtype, copy=copies)
        bias = None if head.bias is None else head.bias.detach().to(dtype, copy=copies)
        return partial(_linear_head, weight, bias, self._transform)


def _linear_head(weight: Tensor, bias: Tensor | None, transform: LogitTransform, hidden: Tensor) -> Tensor:
    product = functional.linear(hidden.to(weight.dtype), weight, bias)
    return transform.forward_(product.to(torch.promote_types(product.dtype, torch.float32)))


def _called_head(
    head: nn.Module, transform: LogitTransform, autocast: Callable[[], torch.autocast], hidden: Tensor
) -> Tensor:
    with torch.no_grad(), autocast():
        logits: Tensor = head(hidden)
    return transform(logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True))
