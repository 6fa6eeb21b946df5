"""Genotypes of any format -> packed SNP codes."""
