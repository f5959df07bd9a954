"""The plugin ``peft`` keeps to the rules of the platform, with an adapter and idle."""

from hooktrain.testing import conformance

test_adapter = conformance(
    "peft",
    recipe="chat",
    settings={"peft": {"type": "lora", "r": 2}},
    changes_gradients=True,
    checks=["resume", "ranks", "device", "teardown"],
)
test_idle = conformance("peft", checks=["hooks", "import", "declines", "observes", "cost"])
