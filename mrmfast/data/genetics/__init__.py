"""Packed genetics in memory, gathered by participant."""
