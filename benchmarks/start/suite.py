"""The suite ``start``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hooktrain.bench import CPU_SECONDS, PEAK_MEMORY, SECONDS, Case, Context, Metric, Suite, Target, Variant

__all__ = ["SUITE"]

_DRIVER = "benchmarks.start.driver"
_FIRST = "first_seconds"
_METRICS = (SECONDS, Metric(_FIRST, "s"), CPU_SECONDS, PEAK_MEMORY)
_TORCH = "import torch"
_CLASS = "import the model's class"
_COMMON = {"micro_batch_size": 2, "train_iters": 1, "run_dir": "run", "strategy": {"device": "cpu", "dtype": "fp32"}}
_TINY = {"type": "tiny", "plugins": {"load": ["hooktrain.testing:TinyPlugin"]}, **_COMMON}


def cases(context: Context) -> Iterator[Case]:
    """Yield the listing commands, a plan, and one step of training, each compared with what it has to import."""
    warmup = 0 if context.quick else 1

    def imports(name: str, code: str) -> Variant:
        return Variant(name, driver=_DRIVER, specification={"words": ["-c", code], "warmup": warmup})

    def command(name: str, *words: str) -> Variant:
        given = {"words": ["-m", "hooktrain", *(words or name.split())], "warmup": warmup}
        return Variant(name, driver=_DRIVER, specification=given)

    torch = imports(_TORCH, "import torch")
    llama = imports(_CLASS, "import torch; from transformers import LlamaForCausalLM")
    yield Case(
        name="listings",
        about="the listing commands, with all installed plugins, compared with importing torch",
        variants=(*(command(name) for name in ("--help", "plugins", "hooks", "schema")), torch),
        metrics=_METRICS,
        targets=[Target(variant=name, at_most=1.0, kind="value") for name in ("plugins", "hooks", "schema")],
    )
    sft_recipe = _chat(context.folder) if context.wants("plan") or context.wants("train") else {}
    sft = _written(context.folder / "sft.yaml", sft_recipe)
    yield Case(
        name="plan",
        about="the plan of a tiny Llama's fine-tuning, compared with importing torch and the model's class",
        variants=(
            command("plan", "plan", sft),
            command("plan --no-estimates", "plan", sft, "--no-estimates"),
            torch,
            llama,
        ),
        metrics=_METRICS,
        targets=(
            Target(variant="plan", at_most=1.2),
            Target(variant="plan", metric=_FIRST, at_most=1.0, kind="value"),
            Target(variant="plan --no-estimates", at_most=1.0, kind="value"),
        ),
        recipe=sft_recipe,
    )
    tiny = _written(context.folder / "tiny.yaml", _TINY)
    yield Case(
        name="train",
        about="a step of a tiny model without transformers and of a tiny Llama, compared with importing torch",
        variants=(command("train tiny", "train", tiny), command("train sft", "train", sft), llama, torch),
        metrics=_METRICS,
        targets=(
            Target(variant="train tiny", at_most=1.8),
            Target(variant="train sft", at_most=3.0),
            *(
                Target(variant=name, metric=_FIRST, at_most=1.0, kind="value", name=f"first output of {name}")
                for name in ("train tiny", "train sft")
            ),
        ),
        recipe=sft_recipe,
    )


def _chat(folder: Path) -> dict[str, Any]:
    """Write a tiny Llama and conversations, and return a recipe for them."""
    from hooktrain.testing import save_llama, write_rows  # imports torch and transformers

    model, rows = save_llama(folder / "model"), write_rows(folder / "rows.jsonl")
    data = {"sources": [{"name_or_path": str(rows)}], "max_length": 64}
    return {"type": "sft", "model": {"name_or_path": str(model)}, "data": data, **_COMMON}


def _written(path: Path, recipe: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


SUITE = Suite(
    name="start",
    summary="time of commands to their first output and end, compared with importing torch (10 minutes)",
    cases=cases,
)
