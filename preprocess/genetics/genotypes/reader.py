"""Genotypes of one cohort, in one file or one file per chromosome, of any format: :class:`Genotypes`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from preprocess.genetics import cohort
from preprocess.genetics.genotypes.base import Carriers, GenotypeFile, counts_of_calls, flipped
from preprocess.genetics.genotypes.companions import other_tables, read_samples
from preprocess.genetics.genotypes.files import find_files, names_samples, open_file


@dataclass(frozen=True)
class Genotypes:
    """Genotypes of one cohort, read in blocks of variants.

    Attributes
    ----------
    files : list of GenotypeFile
    samples : ndarray of str, shape (participants,)
        Participant ids, in the order of the first file, without withdrawn and unlisted participants.
    rows : list of ndarray of int64, each of shape (participants,)
        Row of each participant in each file.
    variants : DataFrame
        One row per variant, in the order of the files: ``file``, ``column`` (row in that file), ``chromosome`` (1..22,
        23 for X, 0 for any other), ``id``, ``position``, ``ref``, ``alt`` (upper case), ``alleles`` (number of
        alleles), ``passes`` (bool; False: FILTER excludes the variant). :func:`.reference.orient` adds ``swapped``
        (bool): the file calls ``ref`` its ``alt``.
    counts : dict
        Counts of participants, from :func:`preprocess.genetics.cohort.select`.
    """

    files: list[GenotypeFile]
    samples: np.ndarray
    rows: list[np.ndarray]
    variants: pd.DataFrame
    counts: dict[str, int]

    def hard_calls(self, variants: np.ndarray, samples: np.ndarray | slice | None = None) -> np.ndarray:
        """Read copies of ``alt``.

        Parameters
        ----------
        variants : ndarray of int64, shape (n,)
            Row numbers of ``variants``; ascending is fastest.
        samples : ndarray of int64, slice, optional
            Participants to read; all by default.

        Returns
        -------
        ndarray of int8, shape (n, participants)
            0, 1, 2; -1 is missing.
        """
        return self._read("hard_calls", np.int8, variants, samples)

    def dosages(self, variants: np.ndarray, samples: np.ndarray | slice | None = None) -> np.ndarray:
        """Read expected copies of ``alt``; hard calls for a file without dosages.

        See docs/genetics-pitfalls.md#dosages-before-hard-calls.

        Returns
        -------
        ndarray of float32, shape (n, participants)
            0..2; NaN is missing.
        """
        return self._read("dosages", np.float32, variants, samples)

    def packed(self, variants: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Read two-bit codes (3: missing) of participants start..stop.

        Returns
        -------
        ndarray of uint8, shape (n, ceil((stop - start) / 4))
        """
        file, column, swap = self._columns(variants)
        parts = [
            self.files[number].packed(column[run], swap[run], self.rows[number][start:stop])
            for run in self.runs(file)
            for number in [int(file[run[0]])]
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def genotype_counts(self, variants: np.ndarray) -> np.ndarray:
        """Count participants with 0, 1, 2 copies of ``alt``, and without a call: int64, shape (n, 4)."""
        counts = np.empty((len(variants), 4), dtype=np.int64)
        file, column, swap = self._columns(variants)
        for run in self.runs(file):
            number = int(file[run[0]])
            counts[run] = self.files[number].genotype_counts(column[run], self._rows_of(number, None))
        counts[swap] = counts[swap][:, [2, 1, 0, 3]]
        return counts

    def carriers(self, variants: np.ndarray, count_ref: np.ndarray, memory: int) -> Carriers:
        """List the carriers of the counted allele, and participants without a call.

        Parameters
        ----------
        variants : ndarray of int64, shape (n,)
        count_ref : ndarray of bool, shape (n,)
            Count ``ref`` instead of ``alt``.
        memory : int
            Maximum size of a block of calls in bytes.
        """
        return self.count_and_list(variants, count_ref, lambda counts, _: np.ones(len(counts), dtype=bool), memory)[1]

    def count_and_list(
        self,
        variants: np.ndarray,
        count_ref: np.ndarray,
        choose: Callable[[np.ndarray, np.ndarray], np.ndarray],
        memory: int,
    ) -> tuple[np.ndarray, Carriers]:
        """Count the genotypes of variants, and list the carriers of chosen variants.

        A format that counts quickly counts first and then reads only the chosen variants. Any other format decodes a
        variant once and derives counts and carriers from the calls.

        Parameters
        ----------
        variants : ndarray of int64, shape (n,)
        count_ref : ndarray of bool, shape (n,)
            Count ``ref`` instead of ``alt``.
        choose : callable
            From counts, shape (k, 4), and ``count_ref``, shape (k,), to the variants to list, bool, shape (k,).
        memory : int
            Maximum size of a block of calls in bytes.

        Returns
        -------
        counts : ndarray of int64, shape (n, 4)
            As :meth:`genotype_counts`.
        Carriers
            Variants are indices into `variants`.
        """
        counts = np.empty((len(variants), 4), dtype=np.int64)
        parts: list[Carriers] = []
        file, column, swap = self._columns(variants)
        for run in self.runs(file):
            number = int(file[run[0]])
            reader, rows = self.files[number], self._rows_of(number, None)
            if not reader.counts_quickly:
                for start, stop in reader.call_blocks(len(run), rows, memory):
                    block = run[start:stop]
                    calls = flipped(reader.hard_calls(column[block], rows), swap[block])
                    counts[block] = counts_of_calls(calls)
                    chosen = np.flatnonzero(choose(counts[block], count_ref[block]))
                    listed = Carriers.of_calls(flipped(calls[chosen], count_ref[block[chosen]]))
                    parts.append(listed._replace(variant=block[chosen[listed.variant]]))
                continue
            counts[run] = reader.genotype_counts(column[run], rows)
            counts[run[swap[run]]] = counts[run[swap[run]]][:, [2, 1, 0, 3]]
            chosen = run[choose(counts[run], count_ref[run])]
            listed = reader.carriers(column[chosen], count_ref[chosen] ^ swap[chosen], rows, memory)
            parts.append(listed._replace(variant=chosen[listed.variant]))
        return counts, Carriers.joined(parts)

    def _read(self, method: str, dtype: type, variants: np.ndarray, samples: np.ndarray | slice | None) -> np.ndarray:
        file, column, swap = self._columns(variants)
        runs = self.runs(file)
        parts = []
        for run in runs:
            number = int(file[run[0]])
            values = getattr(self.files[number], method)(column[run], self._rows_of(number, samples))
            parts.append(flipped(values, swap[run]))
        if len(parts) == 1:
            return parts[0]
        width = len(self.samples) if samples is None else len(self.samples[samples])
        return np.concatenate(parts) if parts else np.empty((0, width), dtype=dtype)

    def _columns(self, variants: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the file of each variant, its column there, and whether its alleles are swapped."""
        file, column = (self.variants[name].to_numpy()[variants] for name in ("file", "column"))
        if "swapped" not in self.variants:
            return file, column, np.zeros(len(variants), dtype=bool)
        return file, column, self.variants["swapped"].to_numpy()[variants]

    def _rows_of(self, number: int, samples: np.ndarray | slice | None) -> np.ndarray | None:
        """Return rows of a file; None for all rows in file order, which is faster to read."""
        rows = self.rows[number] if samples is None else self.rows[number][samples]
        whole = len(rows) == len(self.files[number].ids) and bool((rows == np.arange(len(rows))).all())
        return None if whole else rows

    @staticmethod
    def runs(file: np.ndarray) -> list[np.ndarray]:
        """Split the indices of variants into runs of one file."""
        return [run for run in np.split(np.arange(len(file)), np.flatnonzero(np.diff(file)) + 1) if len(run)]


def open_genotypes(
    source: Path | str,
    *,
    keep: Path | None = None,
    cache: Path | None = None,
    memory: int = 2048,
    dosages: bool = False,
    samples: Path | None = None,
    all_filters: bool = False,
) -> Genotypes:
    """Open the genotypes of a cohort.

    Participants are joined by id, never by row. Withdrawn participants are excluded.

    See docs/genetics-pitfalls.md#withdrawn-participants.

    Parameters
    ----------
    source : path
        A .bed, .pgen, .bgen, .vcf, .vcf.gz or .bcf file, or a folder of files of one format.
    keep : path, optional
        List of participants to keep.
    cache : path, optional
        Folder for PGEN copies of BGEN and VCF files, which plink2 makes if it is installed. Without plink2 the files
        are read in Python, with the same result.
    memory : int
        Memory limit of plink2 in MB.
    dosages : bool
        Read dosages, not hard calls; a VCF has separate fields.
    samples : path, optional
        Table of samples of every file; the table beside each file by default.
    all_filters : bool
        Use variants that fail a filter (FILTER of a VCF or .pvar) too.

    Raises
    ------
    UserError
        A file is missing, malformed or truncated, or the files hold different participants.
    """
    paths = find_files(Path(source))
    bar = tqdm(paths, desc="genotypes: open", unit="file", disable=None if len(paths) > 1 else True)
    ids = None if samples is None else read_samples(samples)
    if ids is None and (tables := other_tables(paths)):
        print(f"genotypes: the samples are those of {', '.join(tables)}")
    files = [open_file(path, cache, memory, dosages, ids) for path in bar]
    chosen, counts = cohort.select(files[0].ids, keep, names_samples(paths[0], samples))
    participants = np.array(files[0].ids, dtype=object)[chosen]
    rows = [chosen]
    if len(files) > 1:
        everyone = cohort.everyone(files[0].ids)
        rows += [
            cohort.locate(participants, file.ids, everyone, names_samples(file.path, samples)) for file in files[1:]
        ]
    tables = [
        file.variants.assign(file=number, column=np.arange(len(file.variants))) for number, file in enumerate(files)
    ]
    variants = pd.concat(tables, ignore_index=True)
    if all_filters:
        variants["passes"] = True
    return Genotypes(files, participants, rows, variants, counts)
