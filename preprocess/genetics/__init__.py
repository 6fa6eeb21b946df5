"""Genotypes, scoring files, annotated variants and expression tables -> ``genetics.zarr``.

``snps``, ``pgs``, ``burden`` and ``expression`` are the commands. Scores: ``scoring`` and ``score_table`` read a file,
``match`` finds its variants, ``score_folder`` keeps the ledger, ``sums`` (or ``plink2``) computes. Burden: ``vep`` and
``harm`` say what is harmful, ``burden_vcf`` and ``burden_plink`` read who carries it, ``gene_bits`` holds that.
``genotypes`` and ``dosages`` read genotypes; ``cohort``, ``standardise`` and ``target`` hold what the commands share.
Known ways to get genotypes wrong: ``docs/genetics-pitfalls.md``.
"""
