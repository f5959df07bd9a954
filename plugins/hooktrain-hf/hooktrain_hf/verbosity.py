"""Progress bars and log messages of transformers and datasets, shown on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["quiet_datasets", "quiet_transformers"]


@contextmanager
def quiet_transformers(is_main: bool = True) -> Iterator[None]:
    """Silence transformers, except on the main rank's terminal, where a bar helps during a long download."""
    from transformers.utils import logging as their_logging

    logging: Any = their_logging  # partly untyped
    if is_main and sys.stderr.isatty():
        yield
        return
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def quiet_datasets(is_main: bool = True) -> Iterator[None]:
    """Silence datasets, except for bars on the main rank's terminal; failures are raised, not logged."""
    import datasets
    from datasets.utils import are_progress_bars_disabled, logging

    verbosity, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    if not (is_main and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
