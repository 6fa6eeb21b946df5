"""BGEN and VCF -> PGEN with plink2, once per source: readers in Python reach only 7-30 k variants/s."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
from filelock import FileLock

from mrmfast.atomic import rename_directory
from preprocess.genetics.genotypes.base import Carriers, GenotypeFile
from preprocess.genetics.genotypes.pgen import PgenFile
from preprocess.genetics.genotypes.tables import X_CHROMOSOME

NAME = "converted"
LEAST_MEMORY = 640  # MB; the minimum that plink2 accepts


class Converted(GenotypeFile):
    """A file whose autosomes are read from its PGEN copy; samples, variants and chromosome X come from the file.

    plink2 imports chromosome X only with the sex of every sample, so the copy excludes X.

    Parameters
    ----------
    original : GenotypeFile
    copy : PgenFile
        From :func:`to_pgen`.
    """

    counts_quickly = True

    def __init__(self, original: GenotypeFile, copy: PgenFile) -> None:
        self.path, self.ids, self.variants = original.path, original.ids, original.variants
        self.has_dosages = original.has_dosages
        self.original, self.copy = original, copy
        self.is_autosomal = _is_autosomal(original.variants["chromosome"].to_numpy())
        self.column_in_copy = np.cumsum(self.is_autosomal) - 1

    def agrees(self) -> bool:
        """Whether the copy has the file's autosomal variants, in the same order."""
        autosomal = self.variants[self.is_autosomal]
        return len(autosomal) == len(self.copy.variants) and all(
            np.array_equal(autosomal[name].to_numpy(), self.copy.variants[name].to_numpy())
            for name in ("chromosome", "position", "ref", "alt")
        )

    def hard_calls(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.hard_calls`."""
        return self._read("hard_calls", columns, samples)

    def dosages(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.dosages`."""
        return self._read("dosages", columns, samples)

    def genotype_counts(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.genotype_counts`."""
        return self._read("genotype_counts", columns, samples)

    def carriers(self, columns: np.ndarray, flip: np.ndarray, samples: np.ndarray | None, memory: int) -> Carriers:
        """See :meth:`.base.GenotypeFile.carriers`."""
        parts = []
        for file, indices, rows in self._split(columns):
            carriers = file.carriers(rows, flip[indices], samples, memory)
            parts.append(carriers._replace(variant=indices[carriers.variant]))
        return Carriers.joined(parts)

    def _read(self, method: str, columns: np.ndarray, samples: np.ndarray | None) -> np.ndarray:
        parts = [(indices, getattr(file, method)(rows, samples)) for file, indices, rows in self._split(columns)]
        if len(parts) == 1:
            return np.asarray(parts[0][1])
        out = np.empty((len(columns), parts[0][1].shape[1]), dtype=parts[0][1].dtype)
        for indices, values in parts:
            out[indices] = values
        return out

    def _split(self, columns: np.ndarray) -> list[tuple[GenotypeFile, np.ndarray, np.ndarray]]:
        """Return (file, indices into `columns`, columns of that file) for the copy and the original."""
        is_in_copy = self.is_autosomal[columns]
        in_copy, other = np.flatnonzero(is_in_copy), np.flatnonzero(~is_in_copy)
        split = [(self.copy, in_copy, self.column_in_copy[columns[in_copy]]), (self.original, other, columns[other])]
        return [part for part in split if len(part[1])] or [(self.copy, in_copy, in_copy)]


def _is_autosomal(chromosome: np.ndarray) -> np.ndarray:
    return (chromosome > 0) & (chromosome < X_CHROMOSOME)


def converted(file: GenotypeFile, dosage: str | None, cache: Path, memory: int) -> GenotypeFile:
    """Return the PGEN copy of a file; the file itself, with a warning, if plink2 is absent or reads other variants."""
    if not _is_autosomal(file.variants["chromosome"].to_numpy()).any():
        return file
    path = to_pgen(file.path, len(file.ids), dosage, cache, memory)
    if path is None:
        return file
    copy = Converted(file, PgenFile(path, file.ids))
    if not copy.agrees():
        warnings.warn(f"plink2 reads other variants in {file.path.name}: it is read in Python, slower", stacklevel=2)
        return file
    return copy


def to_pgen(source: Path, samples: int, dosage: str | None, cache: Path, memory: int) -> Path | None:
    """Convert the autosomes of a file, or return an existing copy.

    The sample ids of the copy are 1, 2, ...: participant ids are never copied.

    Parameters
    ----------
    source : Path
        .bgen, .vcf, .vcf.gz or .bcf.
    samples : int
        Number of samples of `source`.
    dosage : str or None
        FORMAT field of a VCF with dosages.
    cache : Path
        Folder of copies; one folder per source, named by a hash of path, size and modification time.
    memory : int
        Memory limit of plink2 in MB; the default of plink2 is half of the machine's memory.

    Returns
    -------
    Path or None
        The .pgen; None, with a warning, if plink2 is not installed or cannot read the file.
    """
    program = shutil.which("plink2")
    if program is None:
        warnings.warn(f"plink2 is not installed: {source.name} is read in Python, which is slower", stacklevel=2)
        return None
    status = source.stat()
    identity = f"{source.resolve()} {status.st_size} {status.st_mtime_ns} {dosage}"
    final = cache / hashlib.sha256(identity.encode()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{final.name}.lock"):
        pgen = final / f"{NAME}.pgen"
        if pgen.exists():
            return pgen
        aside = cache / f".{final.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        command = [program, *_input_options(source, samples, dosage, aside), "--memory", str(max(memory, LEAST_MEMORY))]
        command += ["--autosome", "--allow-extra-chr", "--make-pgen", "--out", str(aside / NAME), "--silent"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode or not (aside / f"{NAME}.pgen").exists():
            shutil.rmtree(aside)
            # plink2's message may name a participant, so it is not shown; the reader in Python names file and record.
            warnings.warn(
                f"plink2 cannot convert {source.name} (status {done.returncode}): it is read in Python, slower",
                stacklevel=2,
            )
            return None
        for extra in (f"{NAME}.psam", f"{NAME}.log", "samples"):
            (aside / extra).unlink(missing_ok=True)
        rename_directory(aside, final)
        return pgen


def _input_options(source: Path, samples: int, dosage: str | None, folder: Path) -> list[str]:
    """Return plink2's input options; for a BGEN, write a table of numbered samples into `folder`."""
    if source.suffix == ".bgen":
        # REF of the copy is the first allele; the reference allele is decided later.
        names = folder / "samples"
        names.write_text("ID_1 ID_2 missing\n0 0 0\n" + "".join(f"{n} {n} 0\n" for n in range(1, samples + 1)))
        return ["--bgen", str(source), "ref-first", "--sample", str(names)]
    kind = "--bcf" if source.suffix == ".bcf" else "--vcf"
    field = [f"dosage={dosage}"] if dosage else []
    return [kind, str(source), *field, "--vcf-half-call", "missing"]
