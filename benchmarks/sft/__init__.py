"""hooktrain's fine-tuning, compared with TRL, ArcticTraining and a hand-written loop: ``python -m benchmarks sft``."""
