"""Benchmarks: ``python -m benchmarks.NAME [--json FILE]``, one file a question."""
