"""What the engine costs on two ranks, under every strategy, beside the same strategy without it."""
