"""Hugging Face for hooktrain: tokenizers, models, data sources, export and sample answers."""
