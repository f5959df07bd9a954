"""Time of commands to their first output and to their end: ``python -m benchmarks start``."""
