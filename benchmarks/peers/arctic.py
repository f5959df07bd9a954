"""Driver of supervised fine-tuning with ArcticTraining.

The specification: ``model`` (a folder that transformers 4 can read), ``rows`` (JSON lines with ``messages``),
``steps``, ``threads``, ``seed``, ``lr``, ``batch`` and ``settings`` (of its recipe, merged into what must be said:
model, data, where to write, how long, the learning rate and its schedule). The recipe is a dictionary that goes through
``get_config`` and the trainer's own ``train``, as its launcher does with one rank.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import StepClock, drive

_ROLES = {role: f"messages.role.{role}" for role in ("user", "assistant")}


def _rank_zero_of_one(threads: int) -> None:
    """Set what its launcher would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(rank, DS_ACCELERATOR="cpu", WANDB_MODE="disabled", OMP_NUM_THREADS=str(threads))


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Build the recipe and train."""
    _rank_zero_of_one(given["threads"])
    import torch
    from arctic_training.config.trainer import get_config
    from arctic_training.registry import get_registered_trainer
    from datasets import load_dataset

    torch.set_num_threads(given["threads"])
    with tempfile.TemporaryDirectory() as folder:
        load_dataset("json", data_files=given["rows"], split="train").save_to_disk(f"{folder}/rows")
        os.chdir(folder)
        recipe = {
            "type": "sft",
            "micro_batch_size": given["batch"],
            "exit_iteration": given["steps"],
            "seed": given["seed"],
            "model": {"name_or_path": given["model"]},
            "data": {
                "sources": [{"type": "huggingface_instruct", "name_or_path": f"{folder}/rows", "role_mapping": _ROLES}],
                "cache_dir": f"{folder}/cache",
                "num_proc": given["threads"],
            },
            "optimizer": {"learning_rate": given["lr"], "weight_decay": 0.0},
            "scheduler": {"name": "constant"},
            "train_log_metrics_path": f"{folder}/metrics.jsonl",
        }
        for key, value in given["settings"].items():
            recipe[key] = {**recipe[key], **value} if isinstance(value, dict) and key in recipe else value
        config = get_config(recipe)
        trainer = get_registered_trainer(config.type)(config, mode="train")
        clock = StepClock()
        own_step = trainer.step

        def step(batch: Any) -> None:
            own_step(batch)
            tokens = sum(sum(lengths) for lengths in batch["packed_sample_seqlens"])
            supervised = int((batch["labels"][:, 1:] != -100).sum())
            clock.step(tokens=tokens, computed=batch["input_ids"].numel(), supervised=supervised)

        trainer.step = step
        clock.start()
        trainer.train()
        lines = Path(f"{folder}/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        for count, line in zip(clock.counts, lines, strict=True):
            count["loss"] = json.loads(line)["loss"]
        dtype = str(next(trainer.model_unwrapped.parameters()).dtype)
        return {"weights": dtype, "optimizer": type(trainer.optimizer).__name__} | clock.findings()


if __name__ == "__main__":
    drive(measure, "torch", "transformers", "arctic-training", "deepspeed", "datasets")
