"""Driver of the least that any preparation must do: render and tokenize conversations, without masks or packing.

The specification: ``model``, ``rows`` (JSON lines with ``messages``) and optionally ``cores``. Conversations are
rendered by the thousand with ``apply_chat_template`` and tokenized with the tokenizers library's ``encode_batch``; ids
are kept as 32-bit integers. Reading the rows is not timed.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import drive

_BATCH = 1000


def _conversations(path: str) -> Iterator[list[Any]]:
    with Path(path).open(encoding="utf-8") as file:
        while batch := [json.loads(line)["messages"] for line in itertools.islice(file, _BATCH)]:
            yield batch


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Render and tokenize."""
    import numpy as np
    from transformers import AutoTokenizer

    if "cores" in given:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given["cores"]])
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    encode = tokenizer.backend_tokenizer.encode_batch
    seconds, kept = 0.0, []
    for batch in _conversations(given["rows"]):
        began = time.perf_counter()
        texts: Any = tokenizer.apply_chat_template(batch, tokenize=False)
        kept += [np.array(encoding.ids, np.int32) for encoding in encode(texts, add_special_tokens=False)]
        seconds += time.perf_counter() - began
    return {"prepare_seconds": seconds, "prepared_tokens": sum(map(len, kept)), "prepared_rows": len(kept)}


if __name__ == "__main__":
    drive(measure, "transformers", "tokenizers")
