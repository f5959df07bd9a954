"""Config classes for ``data``, ``model`` and ``models``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import attrs
from hooktrain_hf import HFModelConfig
from hooktrain_sft import SFTDataConfig, SourceOptions

from hooktrain import field

__all__ = [
    "KTODataConfig",
    "ModelsSettings",
    "PreferenceDataConfig",
    "ReferenceConfig",
    "RewardDataConfig",
    "RewardModelConfig",
]


@attrs.frozen(kw_only=True)
class _AnswerDataConfig(SFTDataConfig):
    """Options of all data of answers that people like more or less."""

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
            raise ValueError("sources: given a stream, which answers cannot be read from; set streaming: false")

    def _refuse_weights(self) -> None:
        if self.weights:
            raise ValueError("weights: given, but this loss has no weights of tokens; remove them")


@attrs.frozen(kw_only=True)
class PreferenceDataConfig(_AnswerDataConfig):
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


@attrs.frozen(kw_only=True)
class RewardDataConfig(PreferenceDataConfig):
    """Pairs of answers to a prompt, as of ``type: preference``, and a column ``margin`` if there is one.

    The margin, 0 or more, is by how much the score of the chosen answer is to be above that of the rejected one.
    """

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._refuse_weights()


@attrs.frozen(kw_only=True)
class KTODataConfig(_AnswerDataConfig):
    """Single answers with a ``label``, true where they are desirable: ``prompt``, ``completion``, ``label``.

    Pairs of ``chosen`` and ``rejected`` answers are read as two examples.
    """

    untrained: ClassVar[str] = "the completion is empty"

    overflow: Literal["auto", "error", "drop"] = field(default="auto")
    """Handling of answers that are with their prompt longer than ``max_length``; ``auto`` drops them up to
    ``max_dropped``, and above it the run stops as with ``error``. Answers are never cut."""
    on_empty: Literal["auto", "error", "drop"] = field(default="auto")
    """Handling of empty answers; ``auto`` drops them up to ``max_dropped``, and above it the run stops as with
    ``error``."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._refuse_weights()


@attrs.frozen(kw_only=True)
class RewardModelConfig(HFModelConfig):
    """A language model with a head that gives one score, as ``AutoModelForSequenceClassification`` loads it.

    The head of a model that was made to write text is random at first, by the recipe's ``seed``.
    """

    num_labels: ClassVar[int] = 1


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
    precompute: bool = field(default=False)
    """Whether its log-probabilities of all answers are computed once before the training, and kept for later runs;
    afterwards it takes no memory where no strategy shards it."""

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
