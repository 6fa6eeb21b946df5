"""Polygenic scores: PGS Catalog scoring files matched to genotypes, summed and standardised."""
