"""The plugin ``deepspeed`` passes the conformance tests."""

import pytest

from hooktrain.testing import conformance

ZERO = {"strategy": {"type": "deepspeed", "zero_stage": 1, "dtype": "fp32", "device": "cpu"}}
LEAVES = ["DS_ACCELERATOR", "PYTORCH_NVML_BASED_CUDA_CHECK"]  # DeepSpeed's choice for the process

test_conformance = conformance(
    "deepspeed",
    settings=ZERO,
    skip={"device": "DeepSpeed knows no device without values", "teardown": "is thorough"},
    calls=0,
    allocations=0,
)
test_teardown = pytest.mark.thorough(conformance("deepspeed", settings=ZERO, checks=["teardown"], leaves=LEAVES))
