"""Offline preprocessors: raw files in, a dataset folder out (``python -m preprocess``)."""
