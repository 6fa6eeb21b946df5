"""Slides and tiles: find tissue, choose tiles."""
