"""What the plugin reads of DeepSpeed, transformers and torch besides their public names is there, and means the same.

``clear_gradients`` and ``refresh_half_weights`` are what skipped steps and resumes in ``test_strategy`` rest on.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hooktrain_deepspeed import compat
from hooktrain_torch import full_shape
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hooktrain import hookimpl
from tests.plugins.deepspeed.zero import zero
from tests.training.extra_models import Models


class Seen:
    """Calls a function in the last step of a run."""

    def __init__(self, function: Any) -> None:
        self.function, self.result = function, None

    @hookimpl
    def on_step_end(self, trainer):
        engine = trainer.strategy._engine
        self.result = self.function(engine, dict(trainer.model.named_parameters()))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_parameters(run_tiny, stage):
    """One rank: each weight is one shard, and its shape and size are known even where ZeRO-3 has taken its values."""

    def look(engine: Any, parameters: dict[str, Any]) -> list[Any]:
        made = []
        for parameter in parameters.values():
            if stage < 3:
                address = compat.address_of(parameter)
                where = (address.start, address.length)
            else:
                where = (compat.partition_rank(engine.optimizer, parameter), compat.full_numel(parameter))
            made.append((full_shape(parameter), compat.full_numel(parameter), compat.is_partitioned(parameter), where))
        return made

    seen = Seen(look)
    run_tiny(seen, strategy=zero(stage), train_iters=1)
    shapes = [(17, 8), (17, 8), (17,)]
    assert [shape for shape, *_ in seen.result] == shapes
    assert [count for _, count, *_ in seen.result] == [136, 136, 17]
    assert [sharded for *_, sharded, _ in seen.result] == [stage == 3] * 3
    assert [where for *_, where in seen.result] == [(0, 136), (0, 136), (0, 17)]


def test_loss_scaler(run_tiny):
    if not compat.deepspeed_for(torch.device("cpu")).get_accelerator().is_fp16_supported():
        pytest.skip("this processor has no instructions for fp16, which DeepSpeed asks for")
    seen = Seen(lambda engine, _: vars(compat.loss_scaler_of(engine))["cur_scale"])
    run_tiny(seen, strategy=zero(2, dtype="fp16"), train_iters=1)
    assert seen.result > 0


def test_modules_are_recorded_where_nobody_calls_the_outermost_one(run_tiny):
    def coordinator(engine):
        return engine.optimizer.parameter_offload.get_param_coordinator()

    seen = Seen(lambda engine, _: coordinator(engine).is_complete_trace())
    run_tiny(seen, Models(), strategy=zero(3), train_iters=3)
    assert seen.result


def test_configuration():
    recorded: dict[str, Any] = {"train_batch_size": 1}
    compat.deepspeed_for(torch.device("cpu"))
    with pytest.raises(compat.ConfigRefusedError):
        compat.parse_config({"train_batch_size": "many"}, recorded)
    assert "stage" in compat.config_models()["DeepSpeedZeroConfig"].model_fields


def test_transformers_builds_under_zero_init_until_reset():
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    kept = compat.configure_transformers({"train_batch_size": 1})
    assert is_deepspeed_zero3_enabled()
    compat.reset_transformers()
    assert not is_deepspeed_zero3_enabled()
    del kept


def test_tensors_of_a_plan_and_folders_of_extensions(tmp_path, monkeypatch):
    with FakeTensorMode():
        assert compat.is_fake(torch.zeros(1))
    assert not compat.is_fake(torch.zeros(1))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert compat.build_folder("cpu_adam") == tmp_path / "cpu_adam"
    assert not compat.is_cpu_adam(torch.optim.SGD(nn.Linear(1, 1).parameters()))
