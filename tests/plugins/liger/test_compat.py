"""Internal names of Liger and transformers: an upgrade that changes one fails here, not deep in a run."""

from __future__ import annotations

import inspect
import logging
from types import SimpleNamespace

import pytest
from hooktrain_liger import compat
from hooktrain_liger.config import LAYER_KERNELS
from transformers import AutoConfig


def test_liger_has_functions_by_model_type():
    assert {"llama", "gemma2", "qwen3"} <= set(compat.supported_types())
    parameters = inspect.signature(compat.apply_function("llama")).parameters
    assert {"rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy", "model"} == set(parameters)
    known = {
        name for kind in compat.supported_types() for name in inspect.signature(compat.apply_function(kind)).parameters
    }
    assert known >= {*LAYER_KERNELS, "model"}


def test_liger_logs_about_backends_under_the_name_that_is_silenced():
    from liger_kernel.backends import registry

    assert registry.logger.name == "liger_kernel.backends.registry"
    compat.quiet_backends()
    assert logging.getLogger(registry.logger.name).level == logging.ERROR


def test_the_bound_of_logits():
    assert compat.logit_softcap(AutoConfig.for_model("gemma2")) == 30.0
    assert compat.logit_softcap(AutoConfig.for_model("llama")) is None


def test_the_device_of_a_strategy():
    assert [compat.device_of(each) for each in (SimpleNamespace(device="cpu"), object())] == ["cpu", "auto"]


@pytest.mark.parametrize(("value", "on"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_triton_reads_the_variable_alike(monkeypatch, value, on):
    from triton import knobs

    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert compat.interpreting() == knobs.runtime.interpret == on
