"""Imports a library that its distribution does not depend on."""

import a_library_that_was_forgotten  # type: ignore[import-not-found]
from hooktrain import hookimpl


@hookimpl
def on_step_end() -> None:
    a_library_that_was_forgotten.record()
