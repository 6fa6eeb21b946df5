"""Datasets: formats, order, fetching, decoding, joining. Imports without DALI (only ``dali`` needs it)."""
