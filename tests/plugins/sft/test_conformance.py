"""The plugins ``sft`` and ``neftune`` keep to the rules of the platform, in use and idle."""

from hooktrain.testing import conformance

IDLE = ["observes", "cost"]

test_sft = conformance("sft", recipe="chat", skip=dict.fromkeys(IDLE, "test_sft_idle judges it"))
test_sft_idle = conformance("sft", checks=IDLE)
test_neftune = conformance(
    "neftune",
    recipe="chat",
    settings={"neftune": {"noise_alpha": 5.0}},
    changes_gradients=True,
    checks=["resume", "device", "teardown"],  # and not ranks: each draws a noise of its own
)
test_neftune_idle = conformance("neftune", checks=["hooks", "import", "declines", *IDLE])
