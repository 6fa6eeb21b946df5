"""Fetching from an object store: ``python -m benchmarks.object_store``; faults on the way."""
