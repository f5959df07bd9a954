"""Driver of DPO with TRL.

The specification: ``model``, ``rows`` (JSON lines with ``prompt``, ``chosen`` and ``rejected``), ``steps``,
``threads``, ``seed``, ``lr``, ``settings`` (of ``DPOConfig``) and ``lora`` (settings of ``LoraConfig``, or null). The
other arguments of ``DPOConfig`` have no influence on speed: where to write, how long to train, the learning rate and
its schedule, a line for each step, and no GPU.
"""

from __future__ import annotations

import tempfile
from typing import Any

from hooktrain.bench.driver import StepClock, drive


class _Counting:
    """A collator that counts the tokens of each batch, in the order of the steps."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.counts: list[dict[str, float]] = []

    def __call__(self, rows: Any) -> Any:
        batch = self.inner(rows)
        tokens, computed = int(batch["attention_mask"].sum()), batch["input_ids"].numel()
        self.counts.append({"tokens": tokens, "computed": computed, "pairs": len(rows)})
        return batch


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Prepare the data and train."""
    import torch
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined, unused-ignore]

    torch.set_num_threads(given["threads"])
    clock = StepClock()

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    adapter: Any = None
    if given["lora"]:
        from peft import LoraConfig

        adapter = LoraConfig(task_type="CAUSAL_LM", **given["lora"])
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
            "model_init_kwargs": {"dtype": "float32"},
            **given["settings"],
        }
        trainer: Any = DPOTrainer(
            model=given["model"],
            args=DPOConfig(**settings),
            train_dataset=load_dataset("json", data_files=given["rows"], split="train"),
            peft_config=adapter,
            callbacks=[Timed()],
        )
        trainer.data_collator = counting = _Counting(trainer.data_collator)
        trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    for count, more in zip(clock.counts, counting.counts, strict=False):
        count.update(more)
    metrics = {"loss": [line["loss"] for line in lines], "margin": [line["rewards/margins"] for line in lines]}
    return {"weights": str(next(trainer.model.parameters()).dtype)} | clock.findings() | metrics


if __name__ == "__main__":
    drive(measure, "torch", "transformers", "trl", "datasets", "accelerate")
