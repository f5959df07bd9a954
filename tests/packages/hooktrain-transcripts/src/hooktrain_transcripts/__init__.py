"""Transcripts of dialogs as data for hooktrain."""
