"""Dialects: recipes of other programs that hooktrain reads."""
