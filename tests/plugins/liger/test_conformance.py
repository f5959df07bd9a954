"""The plugin ``liger`` keeps to the rules of the platform where it is not used; its kernels need a GPU."""

import pytest

from hooktrain.testing import conformance

test_unused = conformance("liger", checks=["import", "declines", "observes", "cost"], calls=0, allocations=0)
test_unused_runs = pytest.mark.thorough(conformance("liger", checks=["resume", "ranks", "device", "teardown"]))
