"""The plugin ``deepspeed`` passes the conformance tests."""

from hooktrain.testing import conformance

test_conformance = conformance(
    "deepspeed",
    settings={"strategy": {"type": "deepspeed", "zero_stage": 1, "dtype": "fp32", "device": "cpu"}},
    skip={"device": "DeepSpeed knows no device without values"},
    leaves=["DS_ACCELERATOR", "PYTORCH_NVML_BASED_CUDA_CHECK"],  # DeepSpeed's choice for the process
    calls=0,
    allocations=0,
)
