"""Reading a GGUF file's metadata once instead of once for the tokenizer, once for the config and once for the weights.

transformers' general GGUF loader parses the whole vocabulary with a slow pure-Python reader each time, and rebuilds the
table of tensor names for every submodule: three quarters of the time to load a small model.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hooktrain_hf.location import Location

__all__ = ["forget_gguf", "gguf_read_once"]

_last: dict[tuple[str, int, int], Any] = {}  # at most one file's reader: (path, size, time of change) -> GGUFReader


@contextmanager
def gguf_read_once(location: Location) -> Iterator[None]:
    """While open, parsing the same unchanged GGUF file again costs nothing; does nothing for other kinds of models."""
    if location.gguf_file is None:
        yield
        return
    import gguf
    import numpy
    import tqdm.auto
    from transformers import modeling_gguf_pytorch_utils as loader

    reader_class, name_map = gguf.GGUFReader, gguf.get_tensor_name_map

    class PlainReader(reader_class):  # type: ignore[misc, valid-type]
        def __setattr__(self, name: str, value: Any) -> None:
            # slicing a numpy.memmap costs three times what slicing the same memory as a plain array does
            super().__setattr__(name, value.view(numpy.ndarray) if name == "data" else value)

    def read(path: Any, mode: str = "r") -> Any:
        status = os.stat(path)
        key = (os.fspath(path), status.st_size, status.st_mtime_ns)
        if key not in _last:
            _last.clear()
            _last[key] = PlainReader(path, mode)
        return _last[key]

    # transformers looks these up in the package at each call
    gguf.GGUFReader = read  # type: ignore[misc, assignment]
    gguf.get_tensor_name_map = functools.lru_cache(maxsize=None)(name_map)
    # its bar does not follow transformers' own switch; None shows it on a terminal only
    bar, loader.tqdm = loader.tqdm, functools.partial(tqdm.auto.tqdm, disable=None)
    try:
        yield
    finally:
        loader.tqdm = bar
        gguf.GGUFReader, gguf.get_tensor_name_map = reader_class, name_map  # type: ignore[misc]


def forget_gguf() -> None:
    """Drop what was kept; a vocabulary's worth of small arrays takes a few hundred MB."""
    _last.clear()
