"""The plugins ``hf`` and ``samples`` keep to the rules of the platform, in use and idle."""

from hooktrain.testing import conformance

IDLE = ["observes", "cost"]

test_hf = conformance("hf", recipe="chat", skip=dict.fromkeys(IDLE, "test_hf_idle judges it"))
test_hf_idle = conformance("hf", checks=IDLE)
test_samples = conformance(
    "samples",
    recipe="chat",
    settings={"samples": {"prompts": ["What?"], "every_evaluation": True}},
    skip={"cost": "test_samples_idle judges it"},
)
test_samples_idle = conformance("samples", checks=["cost"])
