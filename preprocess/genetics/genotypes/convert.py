"""BGEN and VCF -> PGEN with plink2, once: readers in Python manage 7-30 k variants/s."""

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
LEAST_MEMORY = 640  # MB; plink2 asks for no less


class Converted(GenotypeFile):
    """A file whose autosomes are read from its PGEN copy; samples, variants and chromosome X are those of the file.

    plink2 imports X only with everybody's sex, so the copy leaves it out.

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
        for file, places, rows in self._split(columns):
            found = file.carriers(rows, flip[places], samples, memory)
            parts.append(found._replace(variant=places[found.variant]))
        return Carriers.joined(parts)

    def _read(self, method: str, columns: np.ndarray, samples: np.ndarray | None) -> np.ndarray:
        parts = [(places, getattr(file, method)(rows, samples)) for file, places, rows in self._split(columns)]
        if len(parts) == 1:
            return np.asarray(parts[0][1])
        out = np.empty((len(columns), parts[0][1].shape[1]), dtype=parts[0][1].dtype)
        for places, values in parts:
            out[places] = values
        return out

    def _split(self, columns: np.ndarray) -> list[tuple[GenotypeFile, np.ndarray, np.ndarray]]:
        """Say which columns (places in `columns`) to read from the copy and the original, and their columns there."""
        autosomal = self.is_autosomal[columns]
        ours, theirs = np.flatnonzero(autosomal), np.flatnonzero(~autosomal)
        split = [(self.copy, ours, self.column_in_copy[columns[ours]]), (self.original, theirs, columns[theirs])]
        return [part for part in split if len(part[1])] or [(self.copy, ours, ours)]


def _is_autosomal(chromosome: np.ndarray) -> np.ndarray:
    return (chromosome > 0) & (chromosome < X_CHROMOSOME)


def converted(file: GenotypeFile, dosage: str | None, cache: Path, memory: int) -> GenotypeFile:
    """Return the PGEN copy of a file; the file itself, with a warning, where plink2 is absent or reads it otherwise."""
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
    """Convert the autosomes of a file, unless that was done before.

    The copy names samples 1, 2, ...: participants' ids stay in the source.

    Parameters
    ----------
    source : Path
        .bgen, .vcf, .vcf.gz or .bcf.
    samples : int
        How many samples `source` has.
    dosage : str or None
        FORMAT field of a VCF with dosages.
    cache : Path
        Folder of copies; one folder a source, named by its path, size and time of change.
    memory : int
        What plink2 may take, MB; it would take half of the machine's.

    Returns
    -------
    Path or None
        The .pgen; None if plink2 is not installed or cannot read the file (a warning says so), and the reader in
        Python must do.
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
            # Its message may name a participant, so it is not passed on; ours will name file and record.
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
    """Return plink2's input options, writing a table of numbered samples for a BGEN into `folder`."""
    if source.suffix == ".bgen":
        # The order is decided by our own rules afterwards; REF of the copy is the first allele.
        names = folder / "samples"
        names.write_text("ID_1 ID_2 missing\n0 0 0\n" + "".join(f"{n} {n} 0\n" for n in range(1, samples + 1)))
        return ["--bgen", str(source), "ref-first", "--sample", str(names)]
    kind = "--bcf" if source.suffix == ".bcf" else "--vcf"
    field = [f"dosage={dosage}"] if dosage else []
    return [kind, str(source), *field, "--vcf-half-call", "missing"]
