"""Config classes for ``data`` and ``model``."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
from hooktrain_hf import HFModelConfig
from hooktrain_sft import SFTDataConfig, SourceOptions

from hooktrain import field

__all__ = [
    "KTODataConfig",
    "PreferenceDataConfig",
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
