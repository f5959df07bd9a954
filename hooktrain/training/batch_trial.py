"""Program that tries micro-batch sizes for a rank, smallest first, and prints a line of JSON for each that fits.

It trains steps of the recipe on its longest sequences until a size takes more memory than it may, or all fit.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
import torch

from hooktrain.compat import exit_now
from hooktrain.config import BatchSize
from hooktrain.markers import hookimpl
from hooktrain.training.memory import peak_of_process, process_memory
from hooktrain.types import Batch

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["BatchTrial", "longest_rows", "main"]

_SHARE = 0.95
"""Share of a device's free memory that a run may take: allocators lose some of it in the course of a run."""
_LOOKED_AT = 20_000
"""Sequences at most of which the longest are looked for where their data set does not know how long they are."""
_WINDOWS = 8
"""Windows of a stream of which the longest is taken."""
_SAMPLE = 0.005
"""Seconds between two looks at the memory of the process."""
_NO_MEMORY = ("allocate memory", "out of memory")


class BatchTrial:
    """Tries sizes once everything is built, and ends the process.

    Args:
        sizes: rows of a micro-batch, the smallest first; the last is the whole share of a rank, and with any other a
            step has several micro-batches: the gradients of the first are kept while the second is computed.
        limit: bytes.
        say: prints a mapping as JSON.
    """

    def __init__(self, sizes: Sequence[int], limit: int | None, say: Callable[[Mapping[str, Any]], None]) -> None:
        self.sizes, self.limit, self.say = sizes, limit, say
        self.size = sizes[0]

    @hookimpl(trylast=True)
    def on_train_start(self, trainer: Trainer) -> None:
        device = trainer.device
        if device.type == "cuda":
            free, whole = torch.cuda.mem_get_info(device)
            mine = torch.cuda.memory_reserved(device)
            self.limit = self.limit or int(_SHARE * (free + mine))
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.limit / whole), device)
        elif self.limit is not None:
            threading.Thread(target=self._watch, args=(self.limit,), daemon=True).start()
        rows = longest_rows(trainer) if trainer.data.loader is None else []
        for size in self.sizes:
            self.size = size
            try:
                for _ in range(2):  # the optimizer makes its state in the first step
                    batches = list(self._batches(trainer, rows))
                    trainer.begin_step(batches)
                    trainer.hooks.run_step(trainer=trainer, batches=batches)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                    torch.cuda.empty_cache()
            except (MemoryError, RuntimeError) as problem:
                if isinstance(problem, MemoryError) or any(words in str(problem) for words in _NO_MEMORY):
                    self._end_over(str(problem).partition("\n")[0])
                raise
            peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_of_process()
            if self.limit is not None and peak > self.limit:
                self._end_over(f"{self.size} took {_mib(peak)}, more than {_mib(self.limit)}")
            self.say({"fits": size})
        exit_now(0)

    def _batches(self, trainer: Trainer, rows: Sequence[int]) -> Iterator[Batch]:
        """The micro-batches of a step."""
        count, data = 1 + (self.size < self.sizes[-1]), trainer.data
        if data.loader is not None:
            recipe = attrs.evolve(
                trainer.recipe, micro_batch_size=BatchSize(self.size), gradient_accumulation_steps=count
            )
            given = {"dataset": data.train, "data": data, "recipe": recipe, "world": trainer.data_world}
            windows = islice(trainer.hooks.make_loader(**given).windows(0), _WINDOWS)
            longest = max((batches for _, batches in windows), key=lambda found: sum(map(_numbers, found)))
            yield from map(trainer.divide, longest)
        for _ in range(count if data.loader is None else 0):
            yield trainer.divide(data.collate([data.train[row] for row in islice(cycle(rows), self.size)]))

    def _watch(self, limit: int) -> None:
        while True:
            taken = process_memory()
            if taken > limit:
                self._end_over(f"{self.size} took more than {_mib(limit)}")
            time.sleep(_SAMPLE)

    def _end_over(self, why: str) -> NoReturn:
        self.say({"over": why})
        exit_now(3)


def longest_rows(trainer: Trainer, most: int = 4096) -> list[int]:
    """Return the numbers of the longest training sequences, the longest first; of a large set without lengths, of some.

    Args:
        trainer: with its data.
        most: how many at most.
    """
    data = trainer.data
    numbers: Sequence[int] = range(len(data.train))
    if data.lengths is None:
        numbers = range(0, len(data.train), 1 + len(data.train) // _LOOKED_AT)
        found = torch.tensor([_numbers(data.collate([data.train[number]])) for number in numbers])
    else:
        found = data.lengths
    order = torch.argsort(found, descending=True, stable=True)[:most]
    return [numbers[at] for at in order.tolist()]


def _numbers(batch: Mapping[str, Any]) -> int:
    return sum(value.numel() for value in batch.values() if isinstance(value, torch.Tensor))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def main() -> None:
    """Try the sizes that the standard input gives, until one is too large."""
    sys.path[:] = json.loads(sys.stdin.buffer.readline())
    given = pickle.load(sys.stdin.buffer)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what plugins print is no answer

    def say(fact: Mapping[str, Any]) -> None:
        print(json.dumps(fact), file=answers, flush=True)

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        exit_now(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    from hooktrain.training.load import load
    from hooktrain.training.trainer import Trainer

    trial = BatchTrial(given["sizes"], given["limit"], say)
    plugins = [importlib.import_module(each) if isinstance(each, str) else each for each in given["plugins"]]
    recipe, host = load(
        given["recipe"],
        switches=given["switches"],
        plugins=[*plugins, trial],
        python_parts=given["python_parts"],
        source=given["source"],
        name=given["name"],
    )
    Trainer(recipe, host).run()


if __name__ == "__main__":
    main()
