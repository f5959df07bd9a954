"""Private names of transformers, Lightning and torch: an upgrade that changes one fails here, not deep in a run."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import pytest
import torch
from hooktrain_callbacks import compat, lightning_trainer
from hooktrain_callbacks.proxy import Proxy
from lightning.pytorch.callbacks import EarlyStopping
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from hooktrain import World

PROXIES = [kind for kind in vars(lightning_trainer).values() if isinstance(kind, type) and issubclass(kind, Proxy)]


def private_names() -> Iterator[tuple[str, str]]:
    for kind in PROXIES:
        for name in {*vars(kind), *kind.__annotations__}:
            if name.startswith("_") and not name.startswith("__"):
                yield kind.path, name


@pytest.mark.parametrize(("path", "name"), sorted(private_names()))
def test_a_private_name_of_a_proxy_is_one_of_lightnings_trainer(path, name):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    steps = {"trainer._evaluation_loop": "trainer.validate_loop"}.get(path, path).split(".")[1:]
    if (path, name) == ("trainer", "_evaluation_loop"):
        steps, name = [], "validate_loop"  # which Lightning calls so only while it evaluates
    owner = trainer
    for step in steps:
        owner = getattr(owner, step)
    assert hasattr(owner, name)


def test_devices_and_ranks_of_the_arguments_are_the_runs(tmp_path):
    assert isinstance(vars(TrainingArguments)["parallel_mode"], property) and "_setup_devices" in dir(TrainingArguments)
    made = object.__new__(compat.arguments_class())
    made.run_device, made.run_world, made.run_recipe = torch.device("cpu"), World(rank=1, world_size=2), {"seed": 3}
    made.__init__(output_dir=str(tmp_path), report_to=[])
    assert (made.device, made.n_gpu, made.world_size, made.process_index) == (torch.device("cpu"), 0, 2, 1)
    assert made.to_dict()["recipe"] == {"seed": 3}


def test_attributes_of_callbacks():
    closed = []
    callback = TensorBoardCallback()
    compat.close_writer(callback)
    callback.tb_writer = type("Writer", (), {"close": lambda self: closed.append(1)})()
    compat.close_writer(callback)
    assert closed == [1]
    watched = [compat.monitored_metric(each) for each in (EarlyStopping("val_loss"), EarlyStoppingCallback())]
    assert watched == ["val_loss", "eval"]


def test_step_hooks_of_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    assert "_optimizer_step_pre_hooks" in dir(optimizer) and "full_tensor" in dir(torch.distributed.tensor.DTensor)
