"""Relation masking on the CPU and compiled for GPUs: ``python -m benchmarks.relation``."""
