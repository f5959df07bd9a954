"""How long a command takes to its first word and to its end: ``python -m benchmarks start``."""
