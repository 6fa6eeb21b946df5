"""Genetics from files to tensors, beside the tools people use: ``python -m benchmarks.genetics``."""
