"""Runs of TRL's trainers with the settings of the runs that they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["trl_lines"]


def trl_lines(
    trainer: Any, config: Any, model: Any, tokenizer: Path, rows: Sequence[Mapping[str, Any]], folder: Path, **more: Any
) -> list[dict[str, Any]]:
    """Train ten steps of four rows in their order, in float32 on the CPU; returns the log lines with a loss."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    settings = config(
        output_dir=str(folder),
        max_steps=10,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=96,
        train_sampling_strategy="sequential",
        adam_beta2=0.999,
        **more,
    )
    theirs = trainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=AutoTokenizer.from_pretrained(tokenizer),
    )
    theirs.train()
    return [line for line in theirs.state.log_history if "loss" in line]
