"""The peers, programs that hooktrain is compared with: pinned requirement files, and a small driver for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["ARCTIC", "IGNITE", "LIGHTNING", "PEERS", "TRL", "TRL_GPU", "TRL_PEFT"]

_FOLDER = Path(__file__).parent


def __getattr__(name: str) -> Any:
    # made on first use: drivers import this package in peers' environments, which have no attrs
    if name not in __all__:
        raise AttributeError(f"module 'benchmarks.peers' has no attribute '{name}'")
    from hooktrain.bench import Peer

    # DeepSpeed compiles its kernels on first use, for a processor
    building = {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}
    made: dict[str, Any] = {
        "IGNITE": Peer(name="ignite", requirements=(_FOLDER / "ignite.txt",)),
        "LIGHTNING": Peer(name="lightning", requirements=(_FOLDER / "lightning.txt",)),
        "TRL": Peer(name="trl", requirements=(_FOLDER / "trl.txt",)),
        "TRL_GPU": Peer(name="trl-gpu", requirements=(_FOLDER / "trl.txt", _FOLDER / "trl-gpu.txt")),
        "TRL_PEFT": Peer(name="trl-peft", requirements=(_FOLDER / "trl.txt", _FOLDER / "trl-peft.txt")),
        "ARCTIC": Peer(
            name="arctic", requirements=(_FOLDER / "arctic-build.txt", _FOLDER / "arctic.txt"), building=building
        ),
    }
    globals().update(made, PEERS=tuple(made.values()))
    return globals()[name]
