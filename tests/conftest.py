"""Every test has what plugin authors get: the fixtures of ``hooktrain.testing``."""

import os

import pytest
import torch

pytest_plugins = ["hooktrain.testing"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_outside_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller's shell says about plugins does not reach the tests."""
    for name in ("HOOKTRAIN_PLUGINS", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
