"""The plugin ``preference`` passes the plugin checks."""

from hooktrain.testing import conformance

test_unused = conformance("preference", checks=["import", "declines", "observes", "cost"], calls=0, allocations=0)
