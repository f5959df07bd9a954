"""Runs on this machine, as their records tell of them."""
