"""Checkpoints: read as data alone, and checked."""
