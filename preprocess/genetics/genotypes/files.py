"""The genotype files of a source, and the reader of each file."""

from __future__ import annotations

from pathlib import Path

from mrmfast.errors import UserError
from preprocess.genetics.genotypes.base import GenotypeFile
from preprocess.genetics.genotypes.companions import SAMPLE_TABLES, samples_beside
from preprocess.genetics.genotypes.tables import natural_key

FORMATS = {".bed": ".bed", ".pgen": ".pgen", ".bgen": ".bgen", ".vcf": ".vcf", ".vcf.gz": ".vcf", ".bcf": ".vcf"}
KNOWN = ", ".join(FORMATS)
ACCEPTED = f"a genotype file ({KNOWN}), or a folder of files of one format (e.g. chr1.bed .. chr22.bed)"


def format_of(path: Path) -> str | None:
    """Return the format of a file by its name, ``.vcf`` for all of .vcf, .vcf.gz and .bcf; None for any other."""
    return next((kind for suffix, kind in FORMATS.items() if path.name.endswith(suffix)), None)


def find_files(source: Path) -> list[Path]:
    """List the genotype files of a folder in natural order, or return a single file as a list.

    Names that begin with a dot are skipped: macOS writes a ``._chr1.vcf`` beside ``chr1.vcf``.

    Raises
    ------
    UserError
        The folder holds no genotype file, or files of several formats.
    """
    if not source.exists():
        raise UserError(f"{source}: does not exist; give {ACCEPTED}")
    if not source.is_dir():
        if format_of(source) is None:
            raise UserError(f"{source}: is no genotype file; give one of {KNOWN}, or a folder of them")
        if not source.is_file():
            raise UserError(f"{source}: is no regular file (a pipe or a device); write it to a file first")
        return [source]
    files = (p for p in source.iterdir() if format_of(p) and not p.name.startswith(".") and p.is_file())
    paths = sorted(files, key=natural_key)
    formats = sorted({str(format_of(path)) for path in paths})
    if len(formats) != 1:
        what = f"holds {' and '.join(formats)} files" if formats else "holds no genotype file"
        raise UserError(f"{source}: {what}; give a folder with files of one format ({KNOWN})")
    return paths


def names_samples(path: Path, samples: Path | None = None) -> Path:
    """Return the file with the sample ids of a genotype file, for error messages."""
    companion = samples or (samples_beside(path) if path.suffix in SAMPLE_TABLES else path)
    return companion if companion.exists() else path


def open_file(path: Path, cache: Path | None, memory: int, dosages: bool, ids: list[str] | None = None) -> GenotypeFile:
    """Open one genotype file with the reader of its format.

    Parameters
    ----------
    path : Path
    cache : Path, optional
        Folder for PGEN copies of BGEN and VCF files.
    memory : int
        Memory limit of plink2 in MB, for the copy.
    dosages : bool
        Read dosages, not hard calls; a VCF has separate fields.
    ids : list of str, optional
        Participants of a .bed, .pgen or .bgen; read from the file's own table by default.

    Raises
    ------
    UserError
        The file is malformed, or `ids` are given for a VCF.
    """
    # Libraries are imported on use: importing all of them takes longer than reading a small file.
    suffix = format_of(path)
    if suffix == ".bed":
        from preprocess.genetics.genotypes.plink1 import BedFile

        return BedFile(path, ids)
    if suffix == ".pgen":
        from preprocess.genetics.genotypes.pgen import PgenFile

        return PgenFile(path, ids)
    file: GenotypeFile
    field = None
    if suffix == ".bgen":
        from preprocess.genetics.genotypes.bgen import BgenFile

        file = BgenFile(path, ids)
    else:
        if ids is not None:
            raise UserError(f"--sample: {path.name} names its samples itself; remove the option")
        from preprocess.genetics.genotypes.vcf import VcfFile

        file = VcfFile(path)
        # Calls derived from dosages would be missing where GT is known: for hard calls, GT is converted.
        field = file.dosage_field if dosages or not file.has_calls else None
    if cache is None:
        return file
    from preprocess.genetics.genotypes.convert import converted

    # The reader in Python opens the file first: an error names the damaged record, and the copy never contains ids.
    return converted(file, field, cache, memory)
