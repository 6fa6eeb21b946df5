"""One reader of genotypes for ``snps``, ``pgs`` and ``burden``.

Suggested reading order:

1. :class:`.base.GenotypeFile` is the interface of every format.
2. :mod:`.plink1`, :mod:`.pgen`, :mod:`.bgen` and :mod:`.vcf` implement the interface.
3. :func:`.files.open_file` chooses the implementation.
4. :class:`.reader.Genotypes` joins the files of a cohort by participant.
5. :func:`.reference.orient` decides which allele is the reference. Only ``snps`` needs this decision; weights and
   annotations name their alleles.
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
