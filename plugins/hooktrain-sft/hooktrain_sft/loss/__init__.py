"""The SFT loss and what it finds out about a model's head."""
