"""Everything that only a GPU can show, in one table: ``python -m benchmarks.gpu``."""
