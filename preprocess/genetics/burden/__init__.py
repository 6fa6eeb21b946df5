"""Burden of rare harmful variants: annotations and genotypes -> one bit per participant and gene."""
