"""``--engine plink2``: plink2, the tool of the original study, computes the sums from the same matched rows.

The companion files for plink2 use row numbers as variant ids: repeated or blank ids cannot confuse variants. If a
variant has opposite effect alleles in two scores, plink2 reads two weight files: its result does not depend on the sign
rule for REF weights in :mod:`.score_pass`. Missing calls take the frequencies of the training split here too
(``--read-freq``). plink2's sums have six significant digits.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import trange

from mrmfast.errors import UserError
from preprocess.genetics.genotypes import Genotypes
from preprocess.genetics.pgs.score_pass import Weights


def find() -> str:
    """Return the path of plink2.

    Raises
    ------
    UserError
        plink2 is not installed.
    """
    program = shutil.which("plink2")
    if program is None:
        raise UserError(
            "--engine plink2: plink2 is not on PATH; install it (Debian: apt-get install plink2 libopenblas0-pthread, "
            "or https://www.cog-genomics.org/plink/2.0/), or use --engine own"
        )
    return program


def check_formats(genotypes: Genotypes) -> None:
    """Check that plink2 can score the files without conversion.

    Raises
    ------
    UserError
        A file is neither .bed nor .pgen.
    """
    for file in genotypes.files:
        if file.path.suffix not in (".bed", ".pgen"):
            raise UserError(
                f"--engine plink2: {file.path.name} is neither .bed nor .pgen; convert it with plink2 --make-pgen, or "
                "use --engine own"
            )


def score(genotypes: Genotypes, weights: Weights, train: np.ndarray, memory_mb: int, work: Path) -> np.ndarray:
    """Compute all scores with ``plink2 --score``.

    Parameters
    ----------
    genotypes : Genotypes
    weights : Weights
    train : ndarray of bool, shape (participants,)
    memory_mb : int
        Passed on as ``--memory``.
    work : Path
        Folder for files between the two programs; one is made inside it and removed.

    Returns
    -------
    ndarray of float64, shape (participants, scores)

    Raises
    ------
    UserError
        plink2 is absent or fails; its own message follows.
    """
    program = find()
    check_formats(genotypes)
    first = np.cumsum([0, *(len(file.variants) for file in genotypes.files)]).tolist()
    sums = np.zeros((len(train), len(weights)))
    # plink2 accepts a variant once per weight file: under the effect allele of the last score that uses the variant.
    counts_alt = np.zeros(len(genotypes.variants), dtype=bool)
    for variant, is_alt in zip(weights.variant, weights.effect_is_alt, strict=True):
        counts_alt[variant] = is_alt
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".plink2.", dir=work) as folder:
        for number in trange(len(genotypes.files), desc="pgs: plink2", unit="file", disable=None):
            start, stop = first[number], first[number + 1]
            stem = Path(folder) / str(number)
            common = [program, *_companions(genotypes, number, start, stop, stem), "--memory", str(memory_mb)]
            order = _people(genotypes, number, train, stem)
            _call([*common, "--keep", f"{stem}.train", "--freq", "--out", f"{stem}.freq"])
            for majority in (True, False):
                if not _write_weights(weights, genotypes, (start, stop), counts_alt, majority, Path(f"{stem}.weights")):
                    continue
                columns = "3" if len(weights) == 1 else f"3-{2 + len(weights)}"  # plink2 refuses 3-3
                _call(
                    [
                        *(*common, "--keep", f"{stem}.keep", "--read-freq", f"{stem}.freq.afreq"),
                        *("--score", f"{stem}.weights", "header-read", "cols=scoresums"),
                        *("--score-col-nums", columns, "--out", f"{stem}.out"),
                    ]
                )
                table = pd.read_csv(f"{stem}.out.sscore", sep="\t", dtype={0: str})
                sums[order[table.iloc[:, 0].to_numpy(np.int64)]] += table.iloc[:, -len(weights) :].to_numpy(np.float64)
    return sums


def _companions(genotypes: Genotypes, number: int, start: int, stop: int, stem: Path) -> list[str]:
    """Write variant and sample tables whose ids are row numbers, and return plink2's input options."""
    table = genotypes.variants.iloc[start:stop]
    variants = pd.DataFrame(
        {
            "#CHROM": table["chromosome"].map(lambda code: "X" if code == 23 else str(code)),
            "POS": table["position"],
            "ID": np.arange(start, stop),
            "REF": table["ref"],
            "ALT": table["alt"],
        }
    )
    variants.to_csv(f"{stem}.pvar", sep="\t", index=False)
    # plink2 does not accept the id "0": rows are numbered from 1.
    samples = pd.DataFrame({"#IID": np.arange(1, 1 + len(genotypes.files[number].ids)), "SEX": "NA"})
    samples.to_csv(f"{stem}.psam", sep="\t", index=False)
    path = genotypes.files[number].path
    kind = "--bed" if path.suffix == ".bed" else "--pgen"
    # plink2 reads a .bed with .pvar and .psam: A1 is ALT, as in the variant table.
    return [kind, str(path), "--pvar", f"{stem}.pvar", "--psam", f"{stem}.psam", "--allow-no-sex"]


def _people(genotypes: Genotypes, number: int, train: np.ndarray, stem: Path) -> np.ndarray:
    """Write the lists of participants and return the participant of every sample number."""
    rows = genotypes.rows[number]
    for name, chosen in (("keep", rows), ("train", rows[train])):
        Path(f"{stem}.{name}").write_text("\n".join(map(str, ["#IID", *sorted((chosen + 1).tolist())])) + "\n")
    order = np.full(len(genotypes.files[number].ids) + 1, -1, dtype=np.int64)
    order[rows + 1] = np.arange(len(rows))
    return order


def _write_weights(
    weights: Weights,
    genotypes: Genotypes,
    span: tuple[int, int],
    counts_alt: np.ndarray,
    majority: bool,
    path: Path,
) -> bool:
    """Write the weights in variants of one file.

    Parameters
    ----------
    span : (int, int)
        First and last (exclusive) variant row of the file.
    counts_alt : ndarray of bool, shape (variants,)
        Effect allele of each variant in the first file of weights.
    majority : bool
        Write the weights of that allele, otherwise the weights of the other allele.
    path : Path

    Returns
    -------
    bool
        Whether any weight was written.
    """
    chosen_rows = [
        ((is_alt == counts_alt[variant]) == majority) & (variant >= span[0]) & (variant < span[1])
        for variant, is_alt in zip(weights.variant, weights.effect_is_alt, strict=True)
    ]
    variants = [variant[chosen] for variant, chosen in zip(weights.variant, chosen_rows, strict=True)]
    values = [
        np.where(is_alt, weight, -weight)[chosen]
        for weight, is_alt, chosen in zip(weights.weight, weights.effect_is_alt, chosen_rows, strict=True)
    ]
    rows = np.unique(np.concatenate(variants))
    counted = np.where(counts_alt == majority, genotypes.variants["alt"], genotypes.variants["ref"])
    with open(path, "w", encoding="utf-8") as file:
        file.write("\t".join(["ID", "A", *(f"S{number}" for number in range(len(weights)))]) + "\n")
        for part in _parts(rows):
            matrix = np.zeros((len(part), len(weights)))
            for number, (variant, value) in enumerate(zip(variants, values, strict=True)):
                low, high = np.searchsorted(variant, (part[0], part[-1] + 1))
                matrix[np.searchsorted(part, variant[low:high]), number] = value[low:high]
            for row, line in zip(part.tolist(), matrix, strict=True):
                file.write(f"{row}\t{counted[row]}\t" + "\t".join(map(repr, line.tolist())) + "\n")
    return bool(len(rows))


def _parts(rows: np.ndarray, size: int = 4096) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _call(command: list[str]) -> None:
    result = subprocess.run([*command, "--silent"], capture_output=True, text=True, check=False)
    if result.returncode:
        message = " ".join((result.stderr or result.stdout).split()).removeprefix("Error: ")
        raise UserError(f"--engine plink2: plink2 failed: {message}; use --engine own, or correct the genotypes")
