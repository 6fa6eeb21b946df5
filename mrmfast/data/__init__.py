"""Datasets: formats, order, fetching, decoding, joining. Imports without DALI (only ``pipeline`` needs it)."""
