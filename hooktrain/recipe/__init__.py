"""Recipes: reading them, and structuring them with the parts that plugins register."""
