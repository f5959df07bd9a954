"""Wants to hear of steps, and has the hook's name wrong."""

from hooktrain import hookimpl


@hookimpl
def on_step_ended() -> None:
    print("a step has ended")
