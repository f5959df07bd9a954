"""Every test has what plugin authors get: the fixtures of ``hooktrain.testing``."""

import os

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.has_plugin("hooktrain.testing"):
        raise pytest.UsageError(
            "hooktrain is not installed, or was before it had an entry point for pytest; run `pip install -e .`"
        )


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the caller's shell says about plugins, and what earlier runs have cached, does not reach the tests."""
    monkeypatch.setenv("HOOKTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name in ("HOOKTRAIN_PLUGINS", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
