"""What a hook call costs, and a step on one layer, with plugins and without: ``python -m benchmarks dispatch``."""
