"""Mutated genotypes, scoring files, annotations and tables."""
