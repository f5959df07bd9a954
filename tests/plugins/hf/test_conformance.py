"""The plugins ``hf`` and ``samples`` pass the plugin checks, used and unused.

Their part in runs of ``recipe="chat"`` is checked with ``sft`` too, to which these runs belong.
"""

import pytest

from hooktrain.testing import conformance

SAMPLES = {"samples": {"prompts": ["What?"], "every_evaluation": True}}
RUNS = ["resume", "ranks", "device", "teardown"]

test_hf = conformance("hf", recipe="chat", checks=["hooks", "import", "declines"])
test_hf_unused = conformance("hf", checks=["observes", "cost"], calls=0, allocations=0)
test_hf_runs = pytest.mark.thorough(conformance("hf", recipe="chat", checks=RUNS))

test_samples = conformance(
    "samples", recipe="chat", settings=SAMPLES, checks=["hooks", "import", "declines", "observes"]
)
test_samples_unused = conformance("samples", checks=["cost"], calls=0, allocations=0)
test_samples_runs = pytest.mark.thorough(conformance("samples", recipe="chat", settings=SAMPLES, checks=RUNS))

FLOPS = {"flops": {"enabled": True, "peak_tflops": 1.0}}

test_flops = conformance("flops", recipe="chat", settings=FLOPS, checks=["hooks", "import", "declines", "observes"])
test_flops_unused = conformance("flops", checks=["cost"], calls=0, allocations=0)
test_flops_runs = pytest.mark.thorough(conformance("flops", recipe="chat", settings=FLOPS, checks=RUNS))
