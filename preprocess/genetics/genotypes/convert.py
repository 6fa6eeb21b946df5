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
from preprocess.genetics.genotypes.base import GenotypeFile
from preprocess.genetics.genotypes.pgen import PgenFile

NAME = "converted"
LEAST_MEMORY = 640  # MB; plink2 asks for no less


class Converted(GenotypeFile):
    """The autosomes of a file, read from its PGEN copy; samples and variants are those of the file.

    Parameters
    ----------
    original : GenotypeFile
    copy : PgenFile
        From :func:`to_pgen`.
    """

    def __init__(self, original: GenotypeFile, copy: PgenFile) -> None:
        self.path, self.ids, self.variants = original.path, original.ids, original.variants
        self.copy = copy
        autosomal = original.variants["chromosome"].to_numpy() > 0
        self.row_in_copy = np.cumsum(autosomal) - 1

    def agrees(self) -> bool:
        """Whether the copy has the file's autosomal variants, in the same order."""
        mine = self.variants[self.variants["chromosome"] > 0]
        return len(mine) == len(self.copy.variants) and all(
            np.array_equal(mine[name].to_numpy(), self.copy.variants[name].to_numpy())
            for name in ("chromosome", "position", "ref", "alt")
        )

    def copies(self, columns: np.ndarray) -> np.ndarray:
        """See :meth:`GenotypeFile.copies`."""
        return self.copy.copies(self.row_in_copy[columns])

    def dosages(self, columns: np.ndarray) -> np.ndarray:
        """See :meth:`GenotypeFile.dosages`."""
        return self.copy.dosages(self.row_in_copy[columns])


def converted(file: GenotypeFile, dosage: str | None, cache: Path, memory: int) -> GenotypeFile:
    """Return the PGEN copy of a file; the file itself, with a warning, where plink2 is absent or reads it otherwise."""
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
        if source.suffix == ".bgen":
            # The order is decided by our own rules afterwards; REF of the copy is the first allele.
            names = aside / "samples"
            names.write_text("ID_1 ID_2 missing\n0 0 0\n" + "".join(f"{n} {n} 0\n" for n in range(1, samples + 1)))
            reading = ["--bgen", str(source), "ref-first", "--sample", str(names)]
        else:
            kind = "--bcf" if source.suffix == ".bcf" else "--vcf"
            reading = [kind, str(source), *([f"dosage={dosage}"] if dosage else []), "--vcf-half-call", "missing"]
        limits = ["--memory", str(max(memory, LEAST_MEMORY))]
        command = [
            program,
            *reading,
            *limits,
            "--autosome",
            "--allow-extra-chr",
            "--make-pgen",
            "--out",
            str(aside / NAME),
        ]
        done = subprocess.run([*command, "--silent"], capture_output=True, check=False)
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
