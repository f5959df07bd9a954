"""PyTorch for hooktrain: optimizers, schedules, the ``torch`` strategy and ``full`` checkpoints."""
