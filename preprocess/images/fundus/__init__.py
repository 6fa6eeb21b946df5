"""Fundus photographs: find the circle, crop, quality control."""
