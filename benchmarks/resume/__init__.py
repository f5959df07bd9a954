"""Time to resume at row ten million, compared with row ten: ``python -m benchmarks resume``."""
