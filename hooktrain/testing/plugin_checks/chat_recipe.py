"""The recipe of ``recipe="chat"``: a tiny Llama that is fine-tuned on a few conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hooktrain.testing.tiny_llama import sample_rows, save_llama, write_rows

__all__ = ["make"]


def make() -> dict[str, Any]:
    """Write the model and the examples to the working directory, and return the recipe."""
    folder = Path.cwd()
    rows = str(write_rows(folder / "rows.jsonl", sample_rows(count=12)))
    return {
        "type": "sft",
        "micro_batch_size": 2,
        "model": {"name_or_path": str(save_llama(folder / "model"))},
        "data": {"sources": [rows], "eval_sources": [rows], "max_length": 96, "use_data_cache": False},
        "optimizer": {"type": "adamw", "lr": 1e-2},
        "scheduler": {"type": "linear"},
        "eval_interval": 3,
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
    }
