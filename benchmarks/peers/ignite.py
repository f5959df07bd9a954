"""Driver of one layer with Ignite.

The specification: ``chunks``, ``threads``, ``log_every`` (null for never, Ignite's default) and
``plugins``: how many sets of handlers, and whether they are ``silent`` or ``observing``. The trainer is that of
``create_supervised_trainer``, which reads the loss in each step; a handler of ours writes it to a file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import drive

HOOKS = 4
"""Events of a step that an observing set of handlers handles."""


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train one epoch."""
    import torch
    from ignite.engine import Events, create_supervised_trainer

    from benchmarks.dispatch.common import ROWS, Chunks, adamw, found, layer, make_rows

    torch.set_num_threads(given["threads"])
    clock, model = Chunks(), layer()
    trainer = create_supervised_trainer(
        model,
        adamw(model),
        lambda predicted, wanted: ((predicted - wanted) ** 2).sum() / ROWS,
        prepare_batch=lambda batch, device, non_blocking: (batch["x"], batch["x"]),
    )
    events = {
        "silent": [Events.COMPLETED],
        "observing": [
            Events.GET_BATCH_STARTED,
            Events.GET_BATCH_COMPLETED,
            Events.ITERATION_STARTED,
            Events.ITERATION_COMPLETED,
        ],
    }[given["plugins"]["kind"]]
    for _ in range(given["plugins"]["count"]):
        for event in events:
            trainer.add_event_handler(event, lambda engine: None)
    with Path("metrics.jsonl").open("w", encoding="utf-8") as log:
        if given["log_every"] is not None:

            def write(engine: Any) -> None:
                log.write(json.dumps({"step": engine.state.iteration, "loss": engine.state.output}) + "\n")

            trainer.add_event_handler(Events.ITERATION_COMPLETED(every=given["log_every"]), write)
        trainer.run(torch.utils.data.DataLoader(make_rows(given["chunks"]), ROWS, collate_fn=clock))  # type: ignore[arg-type, unused-ignore]
    return found(model, clock)


if __name__ == "__main__":
    drive(measure, "torch", "pytorch-ignite")
