"""hooktrain's fine-tuning beside TRL, ArcticTraining and a hand-written loop: ``python -m benchmarks sft``."""
