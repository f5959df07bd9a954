"""Implements a hook under a misspelt name."""

from hooktrain import hookimpl


@hookimpl
def on_step_ended() -> None:
    print("a step has ended")
