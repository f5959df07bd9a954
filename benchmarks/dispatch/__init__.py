"""Cost of a hook call, and of a step on one layer, with plugins and without: ``python -m benchmarks dispatch``."""
