"""Fundus images: find the circle, crop, quality control."""
