"""The engine's own plugins."""
