"""DeepSpeed's optimizers and checkpoints as named parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hooktrain import CheckpointError, HooktrainError, RecipeError
from hooktrain.testing import Recorder
from tests.environments import shared
from tests.facts import facts
from tests.launching import weights_at
from tests.plugins.deepspeed.zero import COMMON, zero

OWN = {"type": "deepspeed", "save_every_n_steps": 3, "save_end_of_training": True}


@pytest.fixture
def compiled(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what is compiled, shared by all tests of this run: it takes most of a minute."""
    folder = shared(tmp_path_factory, "extensions", lambda folder: None)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    return folder


ADAM = {**COMMON, "optimizer": {"type": "cpu_adam", "lr": 0.01}}


@pytest.mark.parametrize("decoupled", [True, False])
def test_cpu_adam_gets_the_recipes_numbers(run_tiny, monkeypatch, decoupled):
    """The one that is compiled is for the thorough tier."""
    from deepspeed.ops import adam

    given: list[dict[str, Any]] = []

    class NotCompiled(torch.optim.AdamW):
        def __init__(self, groups: Any, adamw_mode: bool, **more: Any) -> None:
            given.append({"adamw_mode": adamw_mode, **more, "decay": [group["weight_decay"] for group in groups]})
            super().__init__(groups, **more)

    monkeypatch.setattr(adam, "DeepSpeedCPUAdam", NotCompiled)
    numbers = {"lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-7, "weight_decay": 0.3, "decoupled": decoupled}
    trainer = run_tiny(strategy=zero(0), optimizer={"type": "cpu_adam", **numbers})
    expected = {"adamw_mode": decoupled, "lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-7, "decay": [0.3, 0.0]}
    assert given == [expected] and trainer.global_step > 0


@pytest.mark.thorough
@pytest.mark.parametrize(
    "strategy", [zero(0), zero(2, offload="optimizer"), zero(3, offload="optimizer")], ids=["0", "2", "3"]
)
def test_cpu_adam_is_adamw(run_tiny, tmp_path, compiled, strategy):
    """To float32 rounding; saved, and resumed bit by bit."""
    recorder, reference, rest = Recorder(), Recorder(), Recorder()
    save = {"checkpoint": {"type": "full", "save_every_n_steps": 3, "save_end_of_training": True}}
    run_tiny(reference, **COMMON)
    run_tiny(recorder, strategy=strategy, **ADAM, **save)
    losses = [line["loss"] for line in recorder.metrics]
    assert losses == pytest.approx([line["loss"] for line in reference.metrics], abs=5e-6)
    resume = {"resume_from": tmp_path / "run" / "checkpoints" / "step-00000003"}
    run_tiny(rest, strategy=strategy, trainer=resume, run_dir=str(tmp_path / "rest"), **ADAM, **save)
    assert [line["loss"] for line in rest.metrics] == losses[3:]


KILLED = """
import os, signal
from hooktrain_deepspeed.compat import build_folder
from hooktrain_deepspeed.optimizers import compile_lock
with compile_lock("cpu_adam"):
    open(build_folder("cpu_adam") / "lock", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_while_compiling_blocks_no_later_one(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "own"))
    from hooktrain_deepspeed.optimizers import compile_lock

    subprocess.run([sys.executable, "-c", KILLED], check=False, timeout=60)
    assert (tmp_path / "own" / "cpu_adam" / "lock").exists()
    with compile_lock("cpu_adam"):
        assert not (tmp_path / "own" / "cpu_adam" / "lock").exists()
        (tmp_path / "own" / "cpu_adam" / "lock").touch()  # of a process that is compiling
    with compile_lock("cpu_adam"):
        assert (tmp_path / "own" / "cpu_adam" / "lock").exists()


def test_fused_adam_needs_a_gpu(run_tiny):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(HooktrainError, match=facts("optimizer.type", "fused_adam", "GPU", "adamw or cpu_adam")):
        run_tiny(strategy=zero(1), optimizer={"type": "fused_adam"})


# ---------------------------------------------------------------------------------------------------- checkpoints


def merged(folder: Path) -> dict[str, Any]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    found: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    return found


@pytest.mark.parametrize(
    "stage", [pytest.param(1, marks=pytest.mark.thorough), pytest.param(2, marks=pytest.mark.thorough), 3]
)
def test_deepspeeds_own_tools_read_what_it_writes(run_ranks, tmp_path, stage):
    saves = [OWN, {"type": "full", "save_end_of_training": True}]
    run = run_ranks(2, strategy=zero(stage), checkpoint=saves, micro_batch_size=1, **COMMON)
    assert run.status == 0, run.output
    folder = run.folder / "deepspeed"
    last = len(run.metrics)
    names = {path.name for path in folder.iterdir()}
    steps = {*range(3, last + 1, 3), last}
    assert {name for name in names if name.startswith("global")} == {f"global_step{step}" for step in steps}
    assert {"latest", "zero_to_fp32.py"} <= names
    assert not any(name.startswith(".") for name in names)
    assert (folder / "latest").read_text() == f"global_step{last}"
    expected = weights_at(run, last)
    found = merged(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].view(value.shape), value)


def test_recipes_that_deepspeed_checkpoints_refuse(run_tiny):
    with pytest.raises(RecipeError, match=facts("checkpoint[0].type", "given deepspeed", "strategy", "full")):
        run_tiny(checkpoint=OWN)
    with pytest.raises(CheckpointError, match=facts("checkpoint (type: deepspeed)", "auto_resume", "'type: full'")):
        run_tiny(strategy=zero(1), checkpoint={**OWN, "auto_resume": True})
