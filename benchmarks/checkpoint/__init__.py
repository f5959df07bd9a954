"""For how long a save holds up the training, beside ``torch.save`` and torch.distributed.checkpoint."""
