"""Driver that times the hook ``pack_sequences`` on lengths as long-tailed as those of real conversations.

The specification: ``recipe``, ``lengths`` (how many) and ``threads``.
"""

from __future__ import annotations

import time
from typing import Any

from hooktrain.bench.driver import drive

_MAX_LENGTH = 8192


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Pack, and check that every document is in exactly one pack."""
    import numpy as np

    from hooktrain.training.load import load

    made, host = load(given["recipe"])
    drawn = np.random.default_rng(0).lognormal(mean=np.log(400), sigma=1.0, size=given["lengths"])
    lengths = np.clip(drawn.astype(np.int64), 1, _MAX_LENGTH)
    began = time.perf_counter()
    bins = host.hooks.pack_sequences(lengths=lengths, max_length=_MAX_LENGTH, config=made.data)
    seconds = time.perf_counter() - began
    placed = [np.asarray(bins[index]) for index in range(len(bins))]
    assert (np.bincount(np.concatenate(placed), minlength=len(lengths)) == 1).all()
    assert max(int(lengths[members].sum()) for members in placed) <= _MAX_LENGTH
    return {"seconds": seconds, "bins": len(bins), "filled": float(lengths.sum() / (len(bins) * _MAX_LENGTH))}


if __name__ == "__main__":
    drive(measure, "hooktrain", "hooktrain-sft", "numpy")
