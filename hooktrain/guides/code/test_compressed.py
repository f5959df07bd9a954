from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hooktrain.testing import Recorder

SOURCE = (Path(__file__).parent / "compressed.py").read_text()


def test_two_ranks_train_nearly_as_one(
    run_tiny: Any, run_ranks: Any
) -> None:
    recorder = Recorder()
    settings = {"optimizer": {"type": "sgd", "lr": 0.1}}
    run_tiny(recorder, micro_batch_size=4, **settings)
    source = SOURCE.replace("from __future__", "# ")
    run = run_ranks(2, source, **settings)
    assert run.status == 0, run.output
    losses = [line["loss"] for line in recorder.metrics]
    found = [line["loss"] for line in run.metrics]
    assert found == pytest.approx(losses, abs=0.01) and found != losses
