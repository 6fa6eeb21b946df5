"""Companion tables of genotype files (.bim, .fam, .pvar, .psam, .sample): text, chromosome codes, variants."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mrmfast.errors import UserError

AUTOSOMES = {str(number): number for number in range(1, 23)}
X_CHROMOSOME = 23
X_LABELS = {"X", "23", "XY", "25", "PAR1", "PAR2"}  # PLINK's codes; X in the PGS Catalog
LAST_POSITION = 2**31 - 1


def autosome(label: str) -> int:
    """Return 1..22 for an autosome's label, with or without ``chr``; 0 for any other chromosome.

    See docs/genetics-pitfalls.md#chromosome-codes.
    """
    bare = label[3:] if label[:3].lower() == "chr" else label
    return AUTOSOMES.get(bare.lstrip("0"), 0)


def chromosome_code(label: str) -> int:
    """Return 1..22 for an autosome, 23 for X and its pseudo-autosomal ends, 0 for any other chromosome.

    See docs/genetics-pitfalls.md#chromosome-codes.
    """
    bare = label[3:] if label[:3].lower() == "chr" else label
    return X_CHROMOSOME if bare.upper() in X_LABELS else autosome(bare)


def natural_key(path: Path) -> list[int | str]:
    """Return a sort key that orders chr2 before chr10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def read_text(path: Path, beside: str) -> str:
    """Read a small text file; `beside` lists the files of a file set, for the error message.

    Raises
    ------
    UserError
        The file is absent, or not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist; keep {beside} of a file set in one folder") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not text in UTF-8; convert it (iconv -f latin1 -t utf-8), or copy it again if it is damaged"
        ) from error


def variant_table(
    path: Path,
    chromosome: list[str],
    ids: list[str],
    position: list[str],
    ref: list[str],
    alt: list[str],
    first: int,
) -> pd.DataFrame:
    """Build :attr:`.base.GenotypeFile.variants` from columns of text.

    Parameters
    ----------
    first : int
        Line number of the first row.

    Raises
    ------
    UserError
        A position is not an integer of at least 0.
    """
    try:
        positions = np.array(position).astype(np.int64)
        wrong = np.flatnonzero((positions < 0) | (positions > LAST_POSITION)).tolist()
    except (ValueError, OverflowError):
        wrong = [next(n for n, text in enumerate(position) if not re.fullmatch(r"\+?\d{1,10}", text))]
    if wrong:
        raise UserError(
            f"{path}: line {first + wrong[0]}: the position is not an integer from 0 to {LAST_POSITION}; "
            "correct the line"
        )
    code_of = {label: chromosome_code(label) for label in set(chromosome)}
    return pd.DataFrame(
        {
            "chromosome": np.array([code_of[label] for label in chromosome], dtype=np.int8),
            "id": np.array(ids, dtype=object),
            "position": positions,
            "ref": np.array([allele.upper() for allele in ref], dtype=object),
            "alt": np.array([allele.upper() for allele in alt], dtype=object),
            "alleles": np.array([2 + allele.count(",") for allele in alt], dtype=np.int8),
        }
    )


def variant_table_of_columns(table: pd.DataFrame) -> pd.DataFrame | None:
    """Build the same table from columns parsed by pandas; None if a row needs the message of :func:`variant_table`.

    Parameters
    ----------
    table : DataFrame
        ``chromosome``, ``ref``, ``alt`` (categories of str), ``id`` (str), ``position`` (int64).
    """
    if not len(table) or table["position"].min() < 0 or table["position"].max() > LAST_POSITION:
        return None
    category = {name: table[name].cat for name in ("chromosome", "ref", "alt")}
    codes = np.array([chromosome_code(str(label)) for label in category["chromosome"].categories], dtype=np.int8)
    alleles = {name: [str(x).upper() for x in category[name].categories] for name in ("ref", "alt")}
    counts = np.array([2 + allele.count(",") for allele in alleles["alt"]], dtype=np.int8)
    return pd.DataFrame(
        {
            "chromosome": codes[category["chromosome"].codes],
            "id": table["id"].to_numpy(object),
            "position": table["position"].to_numpy(),
            "ref": np.array(alleles["ref"], dtype=object)[category["ref"].codes],
            "alt": np.array(alleles["alt"], dtype=object)[category["alt"].codes],
            "alleles": counts[category["alt"].codes],
        }
    )
