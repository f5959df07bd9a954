"""The plugin ``torch`` passes the conformance tests."""

import pytest

from hooktrain.testing import conformance

test_conformance = conformance("torch", skip={"teardown": "is thorough"})
test_teardown = pytest.mark.thorough(conformance("torch", checks=["teardown"]))
