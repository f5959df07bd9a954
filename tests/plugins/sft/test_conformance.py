"""The plugins ``sft`` and ``neftune`` follow the rules of the platform, in use and unused."""

import pytest

from hooktrain.testing import conformance

NOISE = {"neftune": {"noise_alpha": 5.0}}
OTHERS = {"peft": {"type": "lora", "r": 2}, "samples": {"prompts": ["What?"], "every_evaluation": True}}

test_sft = conformance(
    "sft", recipe="chat", checks=["hooks", "import", "declines", "state", "resume", "ranks", "loss", "device"]
)
test_sft_unused = conformance("sft", checks=["observes", "cost"], calls=0, allocations=0)
test_sft_teardown = pytest.mark.thorough(conformance("sft", recipe="chat", checks=["teardown"]))

test_neftune = conformance("neftune", recipe="chat", settings=NOISE, changes_gradients=True, checks=["device"])
test_neftune_and_others = conformance(
    "neftune",
    recipe="chat",
    settings={**NOISE, **OTHERS},
    plugins=["peft", "samples"],
    changes_gradients=True,
    checks=["hooks"],
)
test_neftune_and_others_teardown = pytest.mark.thorough(
    conformance(
        "neftune",
        recipe="chat",
        settings={**NOISE, **OTHERS},
        plugins=["peft", "samples"],
        changes_gradients=True,
        checks=["teardown"],
    )
)
test_neftune_unused = conformance("neftune", checks=["import", "declines", "observes", "cost"], calls=0, allocations=0)
test_neftune_runs = pytest.mark.thorough(  # and not ranks: each draws a noise of its own
    conformance("neftune", recipe="chat", settings=NOISE, changes_gradients=True, checks=["resume", "teardown"])
)
