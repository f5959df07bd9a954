"""Written for hooktrain-beacon 1, whose hook had the run's folder as a parameter."""

from __future__ import annotations

from hooktrain import hookimpl


@hookimpl(optionalhook=True)
def describe_run(run_dir):
    return {"folder": run_dir.name}
