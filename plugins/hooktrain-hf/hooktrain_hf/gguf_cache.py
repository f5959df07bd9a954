"""Cache of a GGUF file's metadata, so that it is parsed once for the tokenizer, the config and the weights.

transformers' GGUF loader parses the vocabulary with a slow pure-Python reader each time, and rebuilds the table of
tensor names for every submodule. Loading the tokenizer and model of SmolLM2-135M took 31 processor seconds without this
cache and 5.3 with it (transformers 5.23, gguf 0.19).
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
    """Parse a GGUF file only once inside the block and those that follow; does nothing for other kinds of models."""
    if location.gguf_file is None:
        yield
        return
    import gguf
    import numpy
    import tqdm.auto
    import transformers.modeling_gguf_pytorch_utils

    loader: Any = transformers.modeling_gguf_pytorch_utils

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
    # its progress bar does not follow transformers' own switch; None shows it on a terminal only, until it
    # is full
    bar, loader.tqdm = loader.tqdm, functools.partial(tqdm.auto.tqdm, disable=None, leave=False)
    try:
        yield
    finally:
        loader.tqdm = bar
        gguf.GGUFReader, gguf.get_tensor_name_map = reader_class, name_map  # type: ignore[misc]


def forget_gguf() -> None:
    """Clear the cache: the small arrays of a vocabulary take a few hundred MB."""
    _last.clear()
