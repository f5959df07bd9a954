"""A tracker for hooktrain that talks to a Beacon server."""

__version__ = "2.1.0"
