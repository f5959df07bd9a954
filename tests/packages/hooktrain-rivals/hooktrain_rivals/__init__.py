"""Plugins that clash with others."""
