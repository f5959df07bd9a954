"""The plugin ``torch`` keeps to the rules of the platform."""

from hooktrain.testing import conformance

test_conformance = conformance("torch")
