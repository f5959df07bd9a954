"""The platform's rules, with callbacks of both families and with none."""

from __future__ import annotations

import pytest

from hooktrain.testing import conformance

pytestmark = pytest.mark.preload("lightning.pytorch", "lightning.pytorch.callbacks", "transformers.trainer_callback")

WATCHED = [
    {"name": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val_loss", "patience": 50},
    "lightning.pytorch.callbacks.LearningRateMonitor",
    {"name": "transformers.EarlyStoppingCallback", "early_stopping_patience": 50},
    "transformers.integrations.TensorBoardCallback",
]

SETTINGS = {"callbacks": WATCHED, "eval_interval": 2}

test_callbacks = conformance("callbacks", settings=SETTINGS, skip={"cost": "see unused", "teardown": "is thorough"})
test_teardown = pytest.mark.thorough(conformance("callbacks", settings=SETTINGS, checks=["teardown"]))
test_unused = conformance("callbacks", checks=["cost"], calls=0, allocations=0)
