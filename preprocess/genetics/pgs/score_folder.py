"""Reads a folder of scoring files, matches each file to the genotypes and records the fate of every row in a ledger."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from mrmfast.errors import UserError
from preprocess.genetics.genotypes import natural_key
from preprocess.genetics.pgs import scoring_file
from preprocess.genetics.pgs.match import VariantIndex
from preprocess.genetics.pgs.matches import FATES, Matches
from preprocess.genetics.pgs.score_pass import Weights

READERS = 2  # threads; parsing releases the interpreter lock
WAITING = 4  # maximum number of files read ahead of the ledger: bounds memory
CODES = pa.dictionary(pa.int32(), pa.string())
LEDGER = pa.schema(
    [
        ("score", CODES),
        ("row", pa.int32()),
        ("fate", pa.dictionary(pa.int8(), pa.string())),
        ("variant", pa.string()),
        ("effect_allele", CODES),
        ("other_allele", CODES),
        ("weight", pa.float64()),
    ]
)
ROWS_TOGETHER = 1 << 16  # rows per row group of the ledger: small groups have a large overhead
Head = scoring_file.Head | scoring_file.UnusableScoreError
Item = TypeVar("Item")


class RowLedger:
    """``reports/pgs_variants.parquet``: one record per row of every readable file.

    The format is Parquet because 481 real scores have tens of millions of rows: writing text would take longer than
    computing the scores. ``pandas.read_parquet`` opens the file. Columns: ``score``, ``row`` (1-based data row of the
    file), ``fate``, ``variant`` (id in the genotypes, null where none matched), ``effect_allele``, ``other_allele``
    (null: not given), ``weight`` (null in malformed rows).

    Parameters
    ----------
    file : binary file
    ids : ndarray of str, shape (variants,)
        Variant ids of the genotypes.
    """

    def __init__(self, file: IO[bytes], ids: np.ndarray) -> None:
        coded = [name for name in LEDGER.names if pa.types.is_dictionary(LEDGER.field(name).type)]
        self.writer = pq.ParquetWriter(
            file,
            LEDGER,
            compression="zstd",
            compression_level=1,
            use_dictionary=coded,
            write_statistics=False,
            column_encoding={"row": "DELTA_BINARY_PACKED", "variant": "DELTA_BYTE_ARRAY"},
        )
        self.ids = pa.array(ids, pa.string())
        self._held: list[pa.Table] = []

    def add(self, score: scoring_file.Score, matches: Matches) -> None:
        """Record the rows of one score; malformed rows come last."""
        extra = len(score.malformed)
        alleles, fates = pa.array(score.alleles, pa.string()), pa.array([*FATES, "malformed"])

        def column(values: np.ndarray, fill: Any, hidden: np.ndarray | None = None) -> pa.Array:
            if not extra:  # the usual case
                return pa.array(values, mask=hidden)
            tail = np.full(extra, fill, dtype=values.dtype)
            mask = np.r_[np.zeros(len(values), bool) if hidden is None else hidden, np.ones(extra, bool)]
            return pa.array(np.r_[values, tail], mask=mask)

        rows = len(score.line) + extra
        effect, other = column(score.effect, 0), column(score.other, 0, score.other < 0)
        variant = column(matches.variant, 0, matches.variant < 0)
        arrays = [
            pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([score.name], pa.string())),
            pa.array(np.r_[score.line, np.array(score.malformed, np.int32)]),
            pa.DictionaryArray.from_arrays(np.r_[matches.fate, np.full(extra, len(FATES), np.int8)], fates),
            self.ids.take(variant),
            pa.DictionaryArray.from_arrays(effect, alleles),
            pa.DictionaryArray.from_arrays(other, alleles),
            column(score.weight, np.nan),
        ]
        self._held.append(pa.Table.from_arrays(arrays, schema=LEDGER))
        if sum(map(len, self._held)) >= ROWS_TOGETHER:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self.writer.write_table(pa.concat_tables(self._held).unify_dictionaries().combine_chunks())
        self._held = []

    def close(self) -> None:
        """Write the buffered rows and the footer."""
        self._flush()
        self.writer.close()


def read_scores(
    paths: list[Path],
    build: str,
    assumed: str | None,
    index: VariantIndex,
    ledger: RowLedger,
    min_overlap: float,
) -> tuple[list[dict[str, Any]], Weights]:
    """Read and match every scoring file; of several files of one score the first usable file counts.

    A score of which less than `min_overlap` of the rows match is excluded, as in pgscatalog-match.

    Returns
    -------
    list of dict
        One report entry per file: ``score``, ``file``, ``status`` (used, excluded), ``reason``, counts.
    Weights
        Weights of the used scores, in order.
    """
    entries: list[dict[str, Any]] = []
    weights = Weights()
    done: dict[str, str] = {}

    def load(entry: tuple[Path, Head]) -> tuple[scoring_file.Score, Matches] | scoring_file.UnusableScoreError:
        path, head = entry
        if isinstance(head, scoring_file.UnusableScoreError):
            return head
        try:
            score = scoring_file.read_score(path, build, assumed, head)
            return score, index.match(score)
        except scoring_file.UnusableScoreError as error:
            return error

    heads = _preferred_first(paths, build)
    writing: deque[Future[None]] = deque()
    # One thread writes in order while the next files are matched: compression takes as long as matching.
    with tqdm(total=len(heads), desc="pgs: match", unit="file", disable=None) as bar, ThreadPoolExecutor(1) as writer:
        for (path, _), loaded in zip(heads, _ahead(load, heads), strict=True):
            entry: dict[str, Any] = {"score": path.name, "file": path.name, "status": "excluded", "reason": ""}
            entries.append(entry)
            bar.update()
            if isinstance(loaded, scoring_file.UnusableScoreError):
                entry["reason"] = str(loaded)
                continue
            score, matches = loaded
            entry |= {"score": score.name, **score.counts, **matches.counts}
            entry["match_rate"] = int(matches.used.sum()) / score.counts["rows"]
            writing.append(writer.submit(ledger.add, score, matches))
            if len(writing) > WAITING:
                writing.popleft().result()
            entry["reason"] = _why_unusable(score, matches, build, done) or _why_too_few(entry, min_overlap)
            if entry["reason"]:
                continue
            entry["status"] = "used"
            done[score.name] = path.name
            rows = matches.used
            weights.add(matches.variant[rows], score.weight[rows], matches.effect_is_alt[rows])
        for future in writing:
            future.result()
    return entries, weights


def _why_unusable(score: scoring_file.Score, matches: Matches, build: str, done: dict[str, str]) -> str:
    if score.name in done:
        return f"same score as {done[score.name]}"
    if matches.wrong_build:
        return f"{matches.wrong_build}: the genotypes or this score are not in {build}"
    if not matches.used.any():
        return f"none of {score.counts['rows']} rows matches a variant of the genotypes"
    return ""


def _why_too_few(entry: dict[str, Any], min_overlap: float) -> str:
    if entry["match_rate"] >= min_overlap:
        return ""
    used = entry["matched"] + entry["matched_flipped"]
    fates = {name: entry[name] for name in ("malformed", *FATES) if entry[name] and not name.startswith("matched")}
    reasons = ", ".join(f"{count} {name}" for name, count in sorted(fates.items(), key=lambda item: -item[1])[:3])
    return f"{used} of {entry['rows']} rows match, less than --min-overlap {min_overlap:g} ({reasons})"


def _ahead(load: Any, paths: Iterable[Item]) -> Iterator[Any]:
    """Run `load` on every item in a few threads; yield the results in order and read at most a few items ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        items = iter(paths)
        waiting = deque(pool.submit(load, item) for item in islice(items, WAITING))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(load, item) for item in islice(items, 1))
            yield result


def find_scores(source: Path) -> list[Path]:
    """List the scoring files of a folder in natural order, or return a single file as a list."""
    if not source.is_dir():
        return [source]
    names = (p for p in source.iterdir() if p.name.endswith((".txt", ".txt.gz")) and not p.name.startswith("."))
    paths = sorted((p for p in names if p.is_file()), key=natural_key)
    if not paths:
        raise UserError(f"{source}: holds no scoring file (.txt, .txt.gz); download them from the PGS Catalog")
    return paths


def _preferred_first(paths: list[Path], build: str) -> list[tuple[Path, Head]]:
    """Read the heads and put files harmonised to the target build first; the order is otherwise kept."""

    def read(path: Path) -> Head:
        try:
            return scoring_file.read_head(path)
        except scoring_file.UnusableScoreError as error:
            return error

    def rank(entry: tuple[Path, Head]) -> bool:
        head = entry[1]
        return (
            isinstance(head, scoring_file.UnusableScoreError) or scoring_file.declared_builds(head.header)[1] != build
        )

    return sorted(((path, read(path)) for path in paths), key=rank)
