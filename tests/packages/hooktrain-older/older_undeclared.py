"""Written for hooks before 1.0, where ``on_step_end`` had a parameter ``loss``; it declares no version."""

from __future__ import annotations

from hooktrain import hookimpl


@hookimpl
def on_step_end(trainer, loss):
    print(f"step {trainer.global_step}: {loss}")
