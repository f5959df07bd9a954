"""A conversation with a trained model, for ``hooktrain chat``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hooktrain.errors import HooktrainError
from hooktrain.recipe.generation import GenerationSettings
from hooktrain.training.model_source import ModelSource, find_model

__all__ = ["Conversation", "open_conversation"]


def open_conversation(
    source: Path | str,
    *,
    best: bool = False,
    device: str = "auto",
    overrides: Sequence[str] = (),
    switches: Sequence[str] = (),
) -> Conversation:
    """Load a trained model to talk to.

    Args:
        source: a run directory, a checkpoint, or a model or adapter.
        best: take the best checkpoint of a run, instead of the newest.
        device: where the model computes, as torch names it; ``auto`` is a GPU where there is one.
        overrides: ``key=value`` words.
        switches: words for plugins.

    Raises:
        HooktrainError: there is no such model, or no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as problem:
        raise HooktrainError(f"--device: given '{device}', which cannot be used ({problem}); write cpu") from None
    found = find_model(source, best=best, overrides=overrides, switches=switches)
    tokenizer = found.make_tokenizer()
    model = found.make_model(tokenizer)
    found.load_weights(model)
    return Conversation(found, model.to(place).eval(), tokenizer)


class Conversation:
    """What was said so far, and the model that answers.

    Args:
        source: where the model is from.
        model: in evaluation mode.
        tokenizer: its tokenizer.

    Attributes:
        name: the checkpoint or the model.
        messages: from the first on, with ``role`` and ``content``.
    """

    def __init__(self, source: ModelSource, model: Any, tokenizer: Any) -> None:
        self.name = source.name
        self.messages: list[dict[str, str]] = []
        self._hooks, self._model, self._tokenizer = source.host.hooks, model, tokenizer

    def begin(self, system: str | None = None) -> None:
        """Forget what was said, and begin with a system message, if there is one."""
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def answer(self, message: str, settings: GenerationSettings, seed: int = 0) -> Iterator[str]:
        """Yield the answer to a message, a piece after the other. What has come of it is kept when it is closed.

        Args:
            message: of the user.
            settings: length of the answer, and how tokens are drawn.
            seed: for drawing tokens.

        Raises:
            HooktrainError: no plugin answers with such a model, or it cannot; the message is then forgotten.
        """
        messages = [*self.messages, {"role": "user", "content": message}]
        pieces: Any = self._hooks.stream_answer(
            model=self._model, tokenizer=self._tokenizer, messages=messages, settings=settings, seed=seed
        )
        if pieces is None:
            raise HooktrainError(
                f"chat: no plugin answers with a {type(self._model).__name__}, expected one that implements"
                " stream_answer; install it, or give another model"
            )
        said: list[str] = []
        failed = True
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
            failed = False
        except (GeneratorExit, KeyboardInterrupt):
            failed = False
            raise
        finally:
            pieces.close()
            if not failed:
                self.messages = [*messages, {"role": "assistant", "content": "".join(said).strip()}]
