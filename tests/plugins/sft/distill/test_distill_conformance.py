"""The plugin ``distill`` passes the plugin checks."""

from hooktrain.testing import conformance

test_unused = conformance("distill", checks=["import", "declines", "observes", "cost"], calls=0, allocations=0)
