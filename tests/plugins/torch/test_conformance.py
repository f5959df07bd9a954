"""The plugin ``torch`` passes the conformance tests."""

from hooktrain.testing import conformance

test_conformance = conformance("torch")
