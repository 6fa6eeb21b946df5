"""One reader of genotypes for ``snps``, ``pgs`` and ``burden``.

A reading order: :class:`.base.GenotypeFile` says what every format offers, :mod:`.plink1`, :mod:`.pgen`, :mod:`.bgen`
and :mod:`.vcf` implement it, :func:`.files.open_file` chooses among them, :class:`.reader.Genotypes` joins the files of
a cohort by participant, and :func:`.reference.orient` decides which allele is the reference (``snps`` alone needs
that; weights and annotations name their alleles).
"""

from preprocess.genetics.genotypes.base import Carriers, GenotypeFile, as_dosages
from preprocess.genetics.genotypes.files import find_files
from preprocess.genetics.genotypes.reader import Genotypes, open_genotypes
from preprocess.genetics.genotypes.tables import autosome, chromosome_code, natural_key

__all__ = [
    "Carriers",
    "GenotypeFile",
    "Genotypes",
    "as_dosages",
    "autosome",
    "chromosome_code",
    "find_files",
    "natural_key",
    "open_genotypes",
]
