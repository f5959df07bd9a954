"""The plugin ``peft`` passes the plugin checks, with and without an adapter."""

import pytest

from hooktrain.testing import conformance

ADAPTER = {"peft": {"type": "lora", "r": 2}}

test_adapter = conformance("peft", recipe="chat", settings=ADAPTER, changes_gradients=True, checks=["hooks", "resume"])
test_unused = conformance("peft", checks=["import", "declines", "observes", "cost"], calls=0, allocations=0)
test_adapter_runs = pytest.mark.thorough(
    conformance("peft", recipe="chat", settings=ADAPTER, changes_gradients=True, checks=["ranks", "device", "teardown"])
)
