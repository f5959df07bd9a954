"""Plugin ``samples``: the model's answers to fixed prompts before, during and after training."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import GenerationSettings, ModelError, PluginInfo, at_least, field, hookimpl

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["SamplesConfig", "SamplesPlugin", "answer"]


@attrs.frozen(kw_only=True)
class SamplesConfig:
    """Prompts that the model answers, and times at which it does."""

    prompts: tuple[str, ...] = field(default=(), affects_training=False)
    """Messages of a user; each gets an answer."""
    system: str | None = field(default=None, affects_training=False)
    """System message before each prompt; the chat template's own by default."""
    max_new_tokens: int = field(default=48, validator=at_least(1), affects_training=False)
    """Longest answer, in tokens."""
    at_start: bool = field(default=True, affects_training=False)
    """Whether to answer before the first step."""
    at_end: bool = field(default=True, affects_training=False)
    """Whether to answer after the last step."""
    every_evaluation: bool = field(default=False, affects_training=False)
    """Whether to answer after each evaluation too."""


class SamplesPlugin:
    """Prints answers, and appends them to ``samples.jsonl`` in the run directory."""

    hooktrain_plugin = PluginInfo(active_when=lambda recipe: bool(recipe.settings["samples"].prompts))

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, str]] = {}  # prompt -> step and text of its first answer
        self._last_step: int | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"samples": SamplesConfig}}

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        config = _config(trainer)
        if config.prompts and (config.at_start or config.at_end or config.every_evaluation):
            _check_lengths(trainer, config)
        if config.at_start:
            self._show(trainer, config)

    @hookimpl
    def on_evaluate_end(self, trainer: Trainer) -> None:
        config = _config(trainer)
        if config.every_evaluation and trainer.global_step != self._last_step:
            self._show(trainer, config)

    @hookimpl
    def on_train_end(self, trainer: Trainer) -> None:
        config = _config(trainer)
        if config.at_end and trainer.global_step != self._last_step:
            self._show(trainer, config)

    def _show(self, trainer: Trainer, config: SamplesConfig) -> None:
        """Make answers, print and write them: on the main rank, or on all ranks where they share the weights."""
        import torch

        from hooktrain import StrategyDefaults, member

        module: Any = trainer.strategy.unwrap(trainer.model)
        sharded = bool(member(trainer.strategy, StrategyDefaults, "shards_weights"))
        if not config.prompts or not (trainer.world.is_main or sharded):
            return
        step = trainer.global_step
        self._last_step = step

        def make_answers() -> list[tuple[str, str]]:
            make = functools.partial(answer, system=config.system, max_new_tokens=config.max_new_tokens)
            return [(prompt, make(module, trainer.tokenizer, prompt, sharded=sharded)) for prompt in config.prompts]

        with torch.no_grad():
            answers = trainer.strategy.compute(make_answers, True) if sharded else make_answers()
        if not trainer.world.is_main:
            return
        if trainer.owns_run_dir:
            _write(trainer.run_dir / "samples.jsonl", step, answers)
        trainer.say(self._text(step, answers))

    def _text(self, step: int, answers: list[tuple[str, str]]) -> str:
        """Format prompts with their first and newest answers, as wide as the terminal, elsewhere in a line each."""
        lines: list[str] = []
        width = max(40, min(100, shutil.get_terminal_size((100, 24)).columns)) if sys.stdout.isatty() else sys.maxsize
        for prompt, text in answers:
            first_step, first = self._first.setdefault(prompt, (step, text))
            entries = [("prompt", prompt), (_when(step, first_step), text or "(nothing)")]
            if first_step != step:
                entries.insert(1, (_when(first_step, first_step), first or "(nothing)"))
            for name, value in entries:
                lines += textwrap.wrap(f"{name:<8}{value}", width, subsequent_indent=" " * 8, break_long_words=True)
        return "\n".join(lines)


def answer(
    module: Any,
    tokenizer: Any,
    prompt: str,
    *,
    system: str | None = None,
    max_new_tokens: int = 48,
    sharded: bool = False,
) -> str:
    """Generate a model's answer greedily, in evaluation mode and without touching any random state.

    Args:
        module: a transformers model; training mode is restored afterwards.
        tokenizer: with a chat template the prompt is a user's turn, without one the beginning of a text.
        prompt: the user's message.
        system: a system message before it.
        max_new_tokens: longest answer, in tokens; shorter where the model has no more positions.
        sharded: whether weights are sharded over ranks, all of which call this; none ends before the others.

    Raises:
        ModelError: the chat template refuses the messages.
    """
    from hooktrain_hf.generation import generate, prompt_ids

    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    (made,) = generate(module, tokenizer, [prompt_ids(tokenizer, prompt, system)], settings, sharded=sharded)
    return str(tokenizer.decode(made, skip_special_tokens=True)).strip()


def _check_lengths(trainer: Trainer, config: SamplesConfig) -> None:
    """Raise ModelError before the first step where the model has no position for the answer to a prompt."""
    from hooktrain_hf.compat import unwrap_adapters
    from hooktrain_hf.generation import prompt_ids
    from hooktrain_hf.position_count import positions_of

    module: Any = unwrap_adapters(trainer.strategy.unwrap(trainer.model))
    limit = positions_of(module.config)
    for number, prompt in enumerate(config.prompts if limit is not None else ()):
        tokens = len(prompt_ids(trainer.tokenizer, prompt, config.system))
        if limit is not None and tokens >= limit:
            raise ModelError(
                f"samples.prompts[{number}]: given a prompt of {tokens} tokens, but the model has positions for {limit}"
                " tokens, prompt and answer together; give a shorter prompt"
            )


def _config(trainer: Trainer) -> SamplesConfig:
    found = trainer.recipe.settings.get("samples")
    return found if isinstance(found, SamplesConfig) else SamplesConfig()


def _when(step: int, first_step: int) -> str:
    return "before" if step == 0 else "after" if first_step == 0 else f"step {step}"


def _write(path: Path, step: int, answers: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for prompt, text in answers:
            file.write(json.dumps({"step": step, "prompt": prompt, "answer": text}, ensure_ascii=False) + "\n")
