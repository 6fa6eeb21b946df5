"""Genotypes, scoring files, annotated variants and expression tables -> ``genetics.zarr``.

``snps``, ``pgs``, ``burden`` and ``expression`` are the commands, a folder each. ``genotypes`` is the one reader of
.bed, .pgen, .bgen and VCF for the first three. Scores (``pgs``): ``scoring_file`` and ``score_table`` read a file,
``match`` finds its variants, ``score_folder`` keeps the ledger, ``score_pass`` (or ``plink2``) computes. Burden:
``vep`` and ``annotations`` decide what is harmful, ``vcf`` and ``scan`` read who carries it, ``gene_bits`` holds that.
``cohort``, ``standardise``, ``command`` and ``remote`` hold what the commands share. Known ways to get genotypes wrong:
``docs/genetics-pitfalls.md``.
"""
