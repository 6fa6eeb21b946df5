"""Genotypes, scoring files, annotated variants and expression tables -> ``genetics.zarr``.

The folders ``snps``, ``pgs``, ``burden`` and ``expression`` hold one command each. ``genotypes`` reads .bed, .pgen,
.bgen and VCF for the first three commands. Scores (``pgs``): ``scoring_file`` and ``score_table`` read a file,
``match`` finds the variants, ``score_folder`` writes the ledger, ``score_pass`` (or ``plink2``) computes the scores.
Burden: ``vep`` and ``annotations`` select harmful variants, ``vcf`` and ``scan`` read the carriers, ``gene_bits``
stores the carriers. ``cohort``, ``standardise``, ``text``, ``command`` and ``remote`` are shared by the commands. Known
pitfalls of genotype data: ``docs/genetics-pitfalls.md``.
"""
