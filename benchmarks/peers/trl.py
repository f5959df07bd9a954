"""Driver of supervised fine-tuning with TRL.

The specification: ``model``, ``rows`` (JSON lines with ``messages``), ``steps``, ``threads``, ``seed``, ``lr``,
``settings`` (of ``SFTConfig``) and ``weights`` (a dtype for ``model_init_kwargs``, or null). The other
arguments of ``SFTConfig`` have no influence on speed: where to write, how long to train, the learning rate and its
schedule, a loss for each step, and no GPU. With ``only_prepare``, only the preparation of the data is measured.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from hooktrain.bench.driver import StepClock, drive


class _Counting:
    """A collator that counts the tokens of each batch, in the order of the steps."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.counts: list[dict[str, float]] = []

    def __call__(self, rows: Any) -> Any:
        batch = self.inner(rows)
        computed = batch["input_ids"].numel()
        mask = batch.get("attention_mask")
        self.counts.append(
            {
                "tokens": computed if mask is None else int(mask.sum()),
                "computed": computed,
                "supervised": int((batch["labels"][:, 1:] != -100).sum()),
            }
        )
        return batch


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Prepare the data, and train unless ``only_prepare`` is set."""
    import torch
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined, unused-ignore]

    torch.set_num_threads(given["threads"])
    clock, preparing = StepClock(), [0.0]

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    class Trainer(SFTTrainer):  # type: ignore[misc, unused-ignore]
        def _prepare_dataset(self, *arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            prepared = super()._prepare_dataset(*arguments, **named)
            preparing[0] = time.perf_counter() - began
            return prepared

    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "use_cpu": True,
            "max_steps": given["steps"],
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 1,
            "disable_tqdm": True,
            "seed": given["seed"],
            "learning_rate": given["lr"],
            "lr_scheduler_type": "constant",
            **given["settings"],
        }
        if given["weights"]:
            settings["model_init_kwargs"] = {"dtype": given["weights"]}
        trainer: Any = Trainer(
            model=given["model"],
            args=SFTConfig(**settings),
            train_dataset=load_dataset("json", data_files=given["rows"], split="train"),
            callbacks=[Timed()],
        )
        facts = {
            "prepare_seconds": preparing[0],
            "prepared_tokens": sum(map(len, trainer.train_dataset["input_ids"])),
            "prepared_rows": len(trainer.train_dataset),
        }
        if given.get("only_prepare"):
            return facts
        trainer.data_collator = counting = _Counting(trainer.data_collator)
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    for count, more in zip(clock.counts, counting.counts, strict=False):
        count.update(more)
    dtype = str(next(trainer.model.parameters()).dtype)
    return facts | {"weights": dtype} | clock.findings() | {"loss": losses}


if __name__ == "__main__":
    drive(measure, "torch", "transformers", "trl", "datasets", "accelerate")
