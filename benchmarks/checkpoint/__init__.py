"""Time for which a save stalls training, compared with ``torch.save`` and torch.distributed.checkpoint."""
