"""Has defaults for its parameters, which hooks must not have."""

from __future__ import annotations

from typing import Any

from hooktrain import hookimpl


@hookimpl
def on_step_end(trainer: Any = None, output: Any = None) -> None:
    print("a step has ended")
