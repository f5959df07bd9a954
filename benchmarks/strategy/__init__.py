"""Overhead of the engine on two ranks, under every strategy, compared with the same strategy alone."""
