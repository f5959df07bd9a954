"""Config classes for ``data``, ``loss`` and ``models``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import attrs
from hooktrain_sft import SFTDataConfig, SourceOptions

from hooktrain import above, at_least, between, field

__all__ = [
    "CPOLossConfig",
    "DPOLossConfig",
    "ModelsSettings",
    "ORPOLossConfig",
    "PairLossConfig",
    "PreferenceDataConfig",
    "ReferenceConfig",
    "SimPOLossConfig",
]


@attrs.frozen(kw_only=True)
class PreferenceDataConfig(SFTDataConfig):
    """Pairs of answers to a prompt, one ``chosen`` and one ``rejected``, as text or messages.

    Answers are rendered and masked as those of ``type: sft``. ``max_length`` is that of each answer with its prompt,
    and a pack holds twice as many tokens.
    """

    together: ClassVar[int] = 2
    untrained: ClassVar[str] = "an answer is empty, or both are equal"

    overflow: Literal["auto", "error", "drop"] = field(default="auto")
    """Handling of pairs of which an answer with its prompt is longer than ``max_length``; ``auto`` drops them up to
    ``max_dropped``, and above it the run stops as with ``error``. Answers are never cut."""
    on_empty: Literal["auto", "error", "drop"] = field(default="auto")
    """Handling of pairs with an empty answer or with two equal ones; ``auto`` drops them up to ``max_dropped``, and
    above it the run stops as with ``error``."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.reasoning == "split":
            raise ValueError(
                "reasoning_turns: given split, which makes several sequences of an answer, expected last or all;"
                " change or remove it"
            )
        if self.trained_part == "all":
            raise ValueError(
                "train_on: given all of the text, which includes the prompt that both answers share, expected"
                " assistant, last_assistant or completion; change train_on, or remove mask_inputs: false"
            )
        if any(SourceOptions.of(source).streaming for source in self.sources):
            raise ValueError("sources: given a stream, which pairs cannot be read from; set streaming: false")


@attrs.frozen(kw_only=True)
class PairLossConfig:
    """Options of all losses of pairs.

    Attributes:
        needs_reference: whether the loss compares with a reference.
        provides_outputs: outputs of the model that plugins may ask for.
    """

    needs_reference: ClassVar[bool] = False
    provides_outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state", "hidden_states", "router_logits")

    beta: float = field(default=0.1, validator=above(0))
    """Factor of the differences of log-probabilities; with a small one the model moves further from where it began."""
    chunk_size: int | None = field(default=None, validator=at_least(1))
    """Tokens of answers that the LM head processes at a time, which limits the memory for logits; by default chosen by
    the size of the vocabulary."""

    @property
    def hides_logits(self) -> str:
        """Recipe setting to suggest where a plugin needs logits: there is none."""
        return "choose another loss"


@attrs.frozen(kw_only=True)
class DPOLossConfig(PairLossConfig):
    """Direct Preference Optimization (arXiv 2305.18290) and its variants, by TRL's names."""

    needs_reference: ClassVar[bool] = True

    loss_type: Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "apo_zero", "apo_down"] = field(
        default="sigmoid"
    )
    """Variant: ``sigmoid`` is DPO; ``sigmoid_norm`` the same with log-probabilities that are means over the tokens;
    ``ipo`` takes such means too (arXiv 2310.12036); ``hinge`` is SLiC (arXiv 2305.10425); ``robust`` allows for wrong
    preferences (arXiv 2403.00409); ``apo_zero`` and ``apo_down`` are APO (arXiv 2408.06266)."""
    label_smoothing: float = field(default=0.0, validator=between(0, 0.5))
    """Share of the preferences that are taken to be wrong, for ``robust`` and ``sigmoid`` (conservative DPO)."""

    def __attrs_post_init__(self) -> None:
        if self.label_smoothing and self.loss_type not in ("robust", "sigmoid"):
            raise ValueError(
                f"label_smoothing: given {self.label_smoothing} with loss_type {self.loss_type}, which has none;"
                " expected loss_type robust or sigmoid; remove one of the two"
            )
        if self.label_smoothing == 0.5:
            raise ValueError(
                "label_smoothing: given 0.5, with which preferences mean nothing, expected less; write for example 0.1"
            )


@attrs.frozen(kw_only=True)
class SimPOLossConfig(PairLossConfig):
    """SimPO (arXiv 2405.14734): means over the tokens, a margin, and no reference."""

    beta: float = field(default=2.0, validator=above(0))
    """Factor of the difference of the mean log-probabilities."""
    gamma: float = field(default=0.5, validator=at_least(0))
    """Margin by which the chosen answer is to be better, as TRL's ``simpo_gamma``."""


@attrs.frozen(kw_only=True)
class ORPOLossConfig(PairLossConfig):
    """ORPO (arXiv 2403.07691): cross-entropy of the chosen answer and the ratio of odds, without a reference."""


@attrs.frozen(kw_only=True)
class CPOLossConfig(PairLossConfig):
    """CPO (arXiv 2401.08417): DPO without a reference, and the cross-entropy of the chosen answer."""

    cpo_alpha: float = field(default=1.0, validator=at_least(0))
    """Factor of the cross-entropy of the chosen answer, the mean over its tokens."""


@attrs.frozen(kw_only=True)
class ReferenceConfig:
    """The frozen model that a loss compares with."""

    type: Literal["auto", "copy", "adapter_off", "huggingface"] = field(default="auto")
    """``copy`` is the model as it is when the run begins, ``adapter_off`` the run's own model without its adapter,
    which takes no memory, and ``huggingface`` the model under ``name_or_path``. ``auto`` takes ``adapter_off`` where
    the model has an adapter, and ``copy`` otherwise."""
    name_or_path: str | None = field(default=None)
    """Hub name or folder of another model with the same tokenizer, for ``type: huggingface``."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = field(default=None)
    """Type of its weights; by default that of the run's model."""
    offload: bool = field(default=False)
    """Whether its weights lie in the processor's memory, and a part is on the device only while it computes."""

    def __attrs_post_init__(self) -> None:
        if (self.name_or_path is None) == (self.type == "huggingface"):
            given = f"type {self.type} with{'out' if self.name_or_path is None else ''} name_or_path"
            raise ValueError(f"given {given}, expected name_or_path with type huggingface alone; add or remove it")
        if self.type == "adapter_off" and (self.dtype or self.offload):
            raise ValueError(
                "given dtype or offload with type adapter_off, which has no weights of its own; remove them, or choose"
                " type copy"
            )


@attrs.frozen(kw_only=True)
class ModelsSettings:
    """Further models of the run."""

    reference: ReferenceConfig = field(factory=ReferenceConfig)
    """The model that a loss of preferences compares with."""


def settings_of(recipe: Any) -> ModelsSettings:
    """Return the recipe's ``models``."""
    found = recipe.settings.get("models")
    return found if isinstance(found, ModelsSettings) else ModelsSettings()
