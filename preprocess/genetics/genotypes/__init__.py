"""Genotypes of a cohort, whatever the format, in one file or one per chromosome: :func:`open_genotypes`.

Rules, all counted: only autosomes are read; sites with more than two alleles are left out (split them with
``bcftools norm -m-`` to keep them); variants whose alleles both differ from the FASTA are left out; participants are
joined by id and those withdrawn left out. Repeated variant ids stay in the table: what they mean depends on
the use. Counts are copies of the allele that differs from the reference.

See docs/genetics-pitfalls.md#chromosome-codes.
See docs/genetics-pitfalls.md#withdrawn-participants.
See docs/genetics-pitfalls.md#a1-is-not-the-reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from mrmfast.errors import UserError
from preprocess.genetics import cohort
from preprocess.genetics.genotypes.base import GenotypeFile, as_dosages, autosome, flipped, natural_key
from preprocess.genetics.genotypes.plink1 import BedFile
from preprocess.genetics.genotypes.reference import ReferenceGenome, alt_is_reference

__all__ = ["GenotypeFile", "Genotypes", "as_dosages", "autosome", "find_files", "natural_key", "open_genotypes"]
ENDINGS = {".bed": ".bed", ".pgen": ".pgen", ".bgen": ".bgen", ".vcf": ".vcf", ".vcf.gz": ".vcf", ".bcf": ".vcf"}
COLUMNS = ["file", "column", "chromosome", "rank", "id", "position", "ref", "alt", "swapped"]


@dataclass(frozen=True)
class Genotypes:
    """Genotypes of one cohort.

    Attributes
    ----------
    files : list of GenotypeFile
    samples : ndarray of str, shape (participants,)
        Ids, in the order of the first file.
    rows : list of ndarray of int64, each of shape (participants,)
        Where each participant stands in each file.
    variants : DataFrame
        Usable variants by chromosome, then file order: ``file``, ``column`` (row in that file), ``chromosome`` (1..22),
        ``rank`` (place among the chromosome's bi-allelic variants, those left out by the FASTA included), ``id``,
        ``position``, ``ref``, ``alt`` (upper case), ``swapped`` (bool: the file's own order of alleles was turned).
    excluded : DataFrame
        Autosomal variants left out: the same columns and ``fate`` (``multi_allelic``, ``reference_mismatch``).
    counts : dict
        Of participants, from :func:`cohort.select`, and ``variants`` (in the files), ``variants_not_autosomal``,
        ``variants_multi_allelic``, ``variants_reference_mismatch``, ``variants_swapped``,
        ``variants_reference_provisional``.
    """

    files: list[GenotypeFile]
    samples: np.ndarray
    rows: list[np.ndarray]
    variants: pd.DataFrame
    excluded: pd.DataFrame
    counts: dict[str, int]

    def hard_calls(self, variants: np.ndarray, samples: np.ndarray | slice | None = None) -> np.ndarray:
        """Read copies of the allele that differs from the reference.

        Parameters
        ----------
        variants : ndarray of int64, shape (n,)
            Row numbers of ``variants``; ascending is fastest.
        samples : ndarray of int64, slice, optional
            Which participants; all by default.

        Returns
        -------
        ndarray of int8, shape (n, participants)
            0, 1, 2; -1 is missing.
        """
        return self._read("copies", np.int8, variants, samples)

    def dosages(self, variants: np.ndarray, samples: np.ndarray | slice | None = None) -> np.ndarray:
        """Read expected copies of that allele; where a file holds no dosages they are the hard calls.

        See docs/genetics-pitfalls.md#dosages-before-hard-calls.

        Returns
        -------
        ndarray of float32, shape (n, participants)
            0..2; NaN is missing.
        """
        return self._read("dosages", np.float32, variants, samples)

    def _read(self, method: str, dtype: type, variants: np.ndarray, samples: np.ndarray | slice | None) -> np.ndarray:
        chosen = slice(None) if samples is None else samples
        table = self.variants.iloc[variants]
        out: np.ndarray = np.empty((len(variants), len(self.samples[chosen])), dtype=dtype)
        for places in self.runs(table["file"].to_numpy()):
            number = int(table["file"].iloc[places[0]])
            values = getattr(self.files[number], method)(table["column"].to_numpy()[places])
            rows = self.rows[number][chosen]
            out[places] = flipped(values[:, rows], table["swapped"].to_numpy()[places])
        return out

    def packed(self, variants: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Read two-bit codes (3: missing) of participants start..stop.

        Returns
        -------
        ndarray of uint8, shape (n, ceil((stop - start) / 4))
        """
        file, column, swapped = (self.variants[name].to_numpy()[variants] for name in ("file", "column", "swapped"))
        parts = [
            self.files[number].packed(column[places], swapped[places], self.rows[number][start:stop])
            for places in self.runs(file)
            for number in [int(file[places[0]])]
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @staticmethod
    def runs(file: np.ndarray) -> list[np.ndarray]:
        """Split places into runs of one file."""
        return [run for run in np.split(np.arange(len(file)), np.flatnonzero(np.diff(file)) + 1) if len(run)]


def ending(path: Path) -> str | None:
    """Return the format of a file by its name, ``.vcf`` for all of .vcf, .vcf.gz and .bcf; None for any other."""
    return next((kind for end, kind in ENDINGS.items() if path.name.endswith(end)), None)


def find_files(source: Path) -> list[Path]:
    """List the genotype files of a folder in natural order, or return the one file given.

    Raises
    ------
    UserError
        There are none, or they are of several formats.
    """
    known = ", ".join(ENDINGS)
    if not source.exists():
        raise UserError(f"{source}: does not exist; give a genotype file ({known}) or a folder of them")
    if not source.is_dir():
        if ending(source) is None:
            raise UserError(f"{source}: is no genotype file; give one of {known}, or a folder of them")
        return [source]
    found = sorted((p for p in source.iterdir() if ending(p) and not p.name.startswith(".")), key=natural_key)
    kinds = sorted({str(ending(path)) for path in found})
    if len(kinds) != 1:
        what = f"holds {' and '.join(kinds)} files" if kinds else "holds no genotype file"
        raise UserError(f"{source}: {what}; give a folder with files of one format ({known})")
    return found


def open_genotypes(
    path: Path | str,
    *,
    reference: str | None = None,
    fasta: Path | None = None,
    keep: Path | None = None,
    cache: Path | None = None,
    memory: int = 2048,
) -> Genotypes:
    """Open the genotypes of a cohort.

    Parameters
    ----------
    path : path
        A .bed, .pgen, .bgen, .vcf, .vcf.gz or .bcf file, or a folder of files of one format.
    reference : str, optional
        Which allele is the reference: ``a1`` or ``a2`` (.bed), ``ref`` or ``alt`` (.pgen, VCF; ``ref`` by default),
        ``ref-first`` or ``ref-last`` (.bgen).
    fasta : path, optional
        Reference genome; decides variant by variant instead.
    keep : path, optional
        List of participants to keep.
    cache : path, optional
        Folder for PGEN copies of BGEN and VCF files, made by plink2 if that is installed; without it they are read
        in Python, with the same result.
    memory : int
        What plink2 may take for that, MB.

    Raises
    ------
    UserError
        A file is missing, malformed or truncated, the files hold different participants, or the reference is unsaid.
    """
    paths = find_files(Path(path))
    if fasta is not None and reference is not None:
        raise UserError("--reference and --fasta: give one of them, the FASTA decides variant by variant")
    files, frames, provisional = [], [], 0
    bar = tqdm(paths, desc="genotypes: open", unit="file", disable=None if len(paths) > 1 else True)
    for number, one in enumerate(bar):
        suffix = ending(one)
        assert suffix is not None, "find_files knows the ending"
        file = _open(one, suffix, cache, memory)
        swapped = fasta is None and alt_is_reference(suffix, one, reference, file.provisional)
        files.append(file)
        provisional += file.provisional
        frames.append(file.variants.assign(file=number, column=np.arange(len(file.variants)), swapped=swapped))
    chosen, counts = cohort.select(files[0].ids, keep, _names_samples(paths[0]))
    samples = np.array(files[0].ids, dtype=object)[chosen]
    rows = [chosen]
    if len(files) > 1:
        everyone = cohort.everyone(files[0].ids)
        rows += [cohort.locate(samples, f.ids, everyone, _names_samples(f.path)) for f in files[1:]]
    table = pd.concat(frames, ignore_index=True)
    variants, excluded = _usable(table, None if fasta is None else ReferenceGenome(fasta), paths[0])
    fates = excluded["fate"].value_counts()
    counts |= {
        "variants": len(table),
        "variants_not_autosomal": int((table["chromosome"] == 0).sum()),
        "variants_multi_allelic": int(fates.get("multi_allelic", 0)),
        "variants_reference_mismatch": int(fates.get("reference_mismatch", 0)),
        "variants_swapped": int(variants["swapped"].sum()),
        "variants_reference_provisional": 0 if fasta is not None else provisional,
    }
    return Genotypes(files, samples, rows, variants, excluded, counts)


def _open(path: Path, suffix: str, cache: Path | None, memory: int) -> GenotypeFile:
    # Libraries are imported where a file needs them: together they take longer to load than a small file to read.
    if suffix == ".bed":
        return BedFile(path)
    if suffix == ".pgen":
        from preprocess.genetics.genotypes.pgen import PgenFile

        return PgenFile(path)
    file: GenotypeFile
    if suffix == ".bgen":
        from preprocess.genetics.genotypes.bgen import BgenFile

        file, dosage = BgenFile(path), None
    else:
        from preprocess.genetics.genotypes.vcf import VcfFile

        file = VcfFile(path)
        dosage = "DS" if file.has_dosages else None
    if cache is None:
        return file
    from preprocess.genetics.genotypes.convert import converted

    # Opened by our own reader first: damage is named by record, and ids never pass through the copy.
    return converted(file, dosage, cache, memory)


def _usable(table: pd.DataFrame, genome: ReferenceGenome | None, where: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split off what is left out, rank the rest, and order alleles by the genome or by the user's word."""
    table = table[table["chromosome"] > 0].sort_values("chromosome", kind="stable", ignore_index=True)
    if not len(table):
        raise UserError(
            f"{where}: no variant lies on chromosomes 1-22; chromosomes must be named 1..22 or chr1..chr22 "
            "(others are left out)"
        )
    multi = table[(table["alleles"] != 2) | (table["alt"] == ".")].assign(rank=-1, fate="multi_allelic")
    table = table.drop(multi.index).reset_index(drop=True)
    if not len(table):
        raise UserError(f"{where}: no site has two alleles; split multi-allelic ones with bcftools norm -m-")
    table["rank"] = table.groupby("chromosome").cumcount()
    differs = np.zeros(len(table), dtype=bool)
    if genome is not None:
        table["swapped"], differs = genome.orient(table)
    swapped = table["swapped"].to_numpy()
    table["ref"], table["alt"] = (
        np.where(swapped, table["alt"], table["ref"]),
        np.where(swapped, table["ref"], table["alt"]),
    )
    wrong = table[differs].assign(fate="reference_mismatch")
    excluded = pd.concat([multi, wrong], ignore_index=True)[[*COLUMNS, "fate"]]
    return table[~differs].reset_index(drop=True)[COLUMNS], excluded


def _names_samples(path: Path) -> Path:
    """Return the file with the samples' ids, for messages."""
    beside = {".bed": ".fam", ".pgen": ".psam", ".bgen": ".sample"}.get(str(ending(path)))
    found = path.with_suffix(beside) if beside else path
    return found if found.exists() else path
