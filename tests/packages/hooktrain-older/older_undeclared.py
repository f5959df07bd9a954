"""Written for hooks before 1.0, where a step's end had its loss; it does not say so."""

from __future__ import annotations

from hooktrain import hookimpl


@hookimpl
def on_step_end(trainer, loss):
    print(f"step {trainer.global_step}: {loss}")
