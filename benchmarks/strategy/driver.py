"""Driver of one variant: starts a process for each rank, and is the program of each.

The specification: ``variant`` (``ours`` or ``bare``), ``strategy``, ``ranks``, ``steps``, ``rows`` of a micro-batch,
``tokens`` of a row, ``model`` (``vocab``, ``width``, ``depth``) and ``threads`` of all ranks together. The findings are
those of the first rank, with the highest peak memory of all.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import drive, peak_mib


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Start a process for each rank, and wait for all of them."""
    folder = Path.cwd()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = given["ranks"]
    given = {**given, "folder": str(folder)}
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": str(max(1, given["threads"] // ranks)),
    }
    words = [sys.executable, "-m", "benchmarks.strategy.driver", json.dumps(given), "rank"]
    started = [
        subprocess.Popen(words, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)
    ]
    failed = [rank for rank, process in enumerate(started) if process.wait()]
    if failed:
        raise RuntimeError(f"ranks {failed} failed")
    found = [json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    return {**found[0], "peak_mib": max(each["peak_mib"] for each in found)}


def be_a_rank(given: dict[str, Any]) -> None:
    """Train, and write the findings to a file."""
    import torch

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(max(1, given["threads"] // world))
    if given["variant"] == "ours":
        from benchmarks.strategy.ours import train
    else:
        from benchmarks.strategy.bare import train

        torch.distributed.init_process_group("gloo")
    found = train(given, rank, world) | {"peak_mib": round(peak_mib(), 1)}
    (Path(given["folder"]) / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of a process group may outlive it


if __name__ == "__main__":
    if sys.argv[2:] == ["rank"]:
        be_a_rank(json.loads(sys.argv[1]))
    else:
        drive(measure, "torch", "hooktrain", "deepspeed")
