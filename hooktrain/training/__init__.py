"""The Trainer, its loop, and everything that a run needs besides plugins."""
