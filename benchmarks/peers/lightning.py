"""Driver of one layer with Lightning.

The specification: ``chunks``, ``threads``, ``log_every`` (null for its default) and ``plugins``: how many callbacks,
and whether they are ``silent`` or ``observing``. Everything else is its default, except that the progress bar, the
model summary and checkpoints are off. The module logs its loss in each step, as Lightning's users write it; its CSV
logger, the default without TensorBoard, writes it every so many steps.
"""

from __future__ import annotations

from typing import Any

from hooktrain.bench.driver import drive

HOOKS = 6
"""Methods of a step that an observing callback has."""


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train one epoch."""
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer

    from benchmarks.dispatch.common import ROWS, Chunks, adamw, found, layer, loss_of, make_rows

    torch.set_num_threads(given["threads"])

    class Layer(LightningModule):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()

        def training_step(self, batch: Any, index: int) -> Any:
            loss = loss_of(self.layer, batch["x"])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return adamw(self.layer)

    class Silent(Callback):  # type: ignore[misc, unused-ignore]
        def on_fit_end(self, trainer: Any, pl_module: Any) -> None: ...

    class Observing(Callback):  # type: ignore[misc, unused-ignore]
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None: ...

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None: ...

        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None: ...

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None: ...

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None: ...

        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None: ...

    clock, module = Chunks(), Layer()
    kind = {"silent": Silent, "observing": Observing}[given["plugins"]["kind"]]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=given["log_every"],  # None is its own default, 50
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[kind() for _ in range(given["plugins"]["count"])],
    )
    trainer.fit(module, torch.utils.data.DataLoader(make_rows(given["chunks"]), ROWS, collate_fn=clock))  # type: ignore[arg-type, unused-ignore]
    return found(module.layer, clock)


if __name__ == "__main__":
    drive(measure, "torch", "lightning")
