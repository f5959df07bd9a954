"""The plugin ``evals`` passes the plugin checks."""

import pytest

from hooktrain.testing import conformance

METRICS = {"eval_metrics": ["perplexity", "exact_match"], "eval_generation": {"max_new_tokens": 4}}

test_used = conformance("evals", recipe="chat", settings=METRICS, checks=["hooks", "import", "declines", "observes"])
test_unused = conformance("evals", checks=["cost"], calls=0, allocations=0)
test_runs = pytest.mark.thorough(
    conformance("evals", recipe="chat", settings=METRICS, checks=["resume", "ranks", "device", "teardown"])
)
