"""A 1B-class Llama on one GPU, beside TRL and a hand-written loop: ``python -m benchmarks gpu``."""
