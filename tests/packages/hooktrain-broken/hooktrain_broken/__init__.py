"""Plugins that do not work."""
