"""Inspection before anything runs: plugins, hooks, the plan of a recipe. Facts first, as plain values."""
