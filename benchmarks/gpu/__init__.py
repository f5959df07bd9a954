"""A 1B-class Llama on one GPU, compared with TRL and a hand-written loop: ``python -m benchmarks gpu``."""
