"""Driver of one layer with the Trainer of transformers.

The specification: ``chunks``, ``threads``, ``log_every`` (null for its default, 500) and ``plugins``: how many
callbacks, and whether they are ``silent`` or ``observing``. Rows are not shuffled, nothing is clipped, saved or shown;
its log lines go to its own history. Everything else is its default.
"""

from __future__ import annotations

from typing import Any

from hooktrain.bench.driver import drive

HOOKS = 4
"""Methods of a step that an observing callback has, without those that log, save or evaluate."""


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train one epoch."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from benchmarks.dispatch.common import LR, ROWS, Chunks, found, layer, loss_of, make_rows

    torch.set_num_threads(given["threads"])

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()

        def forward(self, x: Any) -> dict[str, Any]:
            return {"loss": loss_of(self.layer, x)}

    class Silent(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None: ...

    class Observing(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None: ...

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None: ...

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None: ...

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None: ...

    clock, model = Chunks(), Layer()
    kind = {"silent": Silent, "observing": Observing}[given["plugins"]["kind"]]
    settings = {} if given["log_every"] is None else {"logging_steps": given["log_every"]}
    arguments = TrainingArguments(
        output_dir="out",
        use_cpu=True,
        per_device_train_batch_size=ROWS,
        num_train_epochs=1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    trainer: Any = Trainer(
        model=model,
        args=arguments,
        data_collator=clock,
        train_dataset=make_rows(given["chunks"]),  # type: ignore[arg-type, unused-ignore]
        callbacks=[kind() for _ in range(given["plugins"]["count"])],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return found(model.layer, clock)


if __name__ == "__main__":
    drive(measure, "torch", "transformers", "accelerate")
