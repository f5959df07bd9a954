"""Losses, the LM head and the inspection of models for both."""
