from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hooktrain import Trainer
from hooktrain.testing import Run

import lowest


def test_lowest(
    run_tiny: Callable[..., Trainer], run_cli: Callable[..., Run]
) -> None:
    folder = run_tiny().run_dir
    where = str(Path(lowest.__file__).parent)
    env = {"HOOKTRAIN_PLUGINS": "lowest", "PYTHONPATH": where}

    shown = run_cli("lowest", folder, "--json", env=env)
    found = json.loads(shown.stdout)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert found["loss"] == min(json.loads(line)["loss"] for line in lines)

    shown = run_cli("lowest", folder, "--metric", "los", env=env)
    assert shown.status == 1
    assert "has no metric 'los' (did you mean 'loss'?)" in shown.stderr
