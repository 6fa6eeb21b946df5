"""TCGA tables -> RNA expression, copy number and mutations per case."""
