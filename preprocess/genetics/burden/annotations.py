"""Pairs of a variant and the gene it damages: from regenie's annotation, set-list and mask files, or from VEP's sites.

regenie's formats (https://rgcgithub.github.io/regenie/options/#gene-based-testing): annotations are lines of variant,
gene, category (or variant, gene, domain, category); a set list is gene, chromosome, position, comma-joined variants; a
mask file is name, comma-joined categories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from preprocess.genetics.burden import vep
from preprocess.genetics.burden.gene_bits import Gene
from preprocess.genetics.burden.vcf import find_vcfs, records
from preprocess.genetics.genotypes import autosome
from preprocess.genetics.genotypes.tables import passes_filter
from preprocess.genetics.genotypes.vcf_records import header_lines, open_vcf
from preprocess.genetics.text import read_rows

REMEDY = "correct the line"


@dataclass(frozen=True)
class Annotations:
    """Pairs of a variant and a gene.

    Attributes
    ----------
    pairs : DataFrame
        ``variant`` (row of the genotypes; -1 where `fate` holds the reason), ``label``, ``gene``, ``why``,
        ``count_ref`` (the harmful allele is the genotypes' ``ref``), ``fate`` ("" while undecided).
    genes : dict
        Known positions and symbols of annotated genes, by gene id.
    counts : CsqCounts
        Of VEP's annotations.
    """

    pairs: pd.DataFrame
    genes: dict[str, Gene]
    counts: vep.CsqCounts = field(default_factory=vep.CsqCounts)


def read_tables(
    annotations: Path, sets: Path | None, masks: Path | None, mask: str | None, variants: pd.DataFrame, count_ref: bool
) -> Annotations:
    """Read regenie's files and find the variants by id.

    Parameters
    ----------
    annotations, sets, masks : Path
        Without a set list every annotated pair counts.
    mask : str
        A name in `masks`, or categories joined by commas.
    variants : DataFrame
        The variants of the genotypes.
    count_ref : bool
        The harmful allele is the one that the genotypes call ``ref``.

    Raises
    ------
    UserError
        A file is malformed (the message names the line), or no category is known.
    """
    rows = _fields(annotations, (3, 4), "variant gene category")
    pairs = pd.DataFrame(
        {"label": [row[0] for row in rows], "gene": [row[1] for row in rows], "why": [row[-1] for row in rows]}
    )
    categories = _categories(masks, mask, sorted(set(pairs["why"])), annotations)
    genes: dict[str, Gene] = {}
    fate = np.full(len(pairs), "", dtype=object)
    if sets is not None:
        members: set[tuple[str, str]] = set()
        annotated = set(pairs["gene"])
        for number, (gene, chromosome, position, names) in enumerate(_fields(sets, (4,), "gene chr pos variants"), 1):
            if not position.isdecimal():
                raise UserError(f"{sets}: line {number}: column 3 (position) is not a whole number; {REMEDY}")
            if gene in annotated:
                genes[gene] = Gene(autosome(chromosome), int(position))
            members.update((name, gene) for name in names.split(","))
        listed = [pair in members for pair in zip(pairs["label"], pairs["gene"], strict=True)]
        fate[~np.array(listed, dtype=bool)] = "not_in_set"
    fate[(fate == "") & ~pairs["why"].isin(categories).to_numpy()] = "not_in_mask"
    ids = variants["id"].to_numpy(object)
    repeated = pd.Series(ids).duplicated(keep=False).to_numpy()
    row_of = pd.Series(np.arange(len(ids))[~repeated], index=ids[~repeated])
    variant = row_of.reindex(pairs["label"]).fillna(-1).to_numpy(np.int64)
    absent = (variant < 0) & (fate == "")
    fate[absent] = "absent"
    # Two variants with one id: the table cannot tell which of them is meant.
    fate[absent & pairs["label"].isin(set(ids[repeated])).to_numpy()] = "id_repeats"
    return Annotations(pairs.assign(variant=variant, count_ref=count_ref, fate=fate), genes)


def read_vep(path: Path, rule: vep.HarmRule, variants: pd.DataFrame, all_filters: bool = False) -> Annotations:
    """Read VEP's sites and find the variants by position and alleles; the alleles may be swapped in the genotypes.

    Raises
    ------
    UserError
        A file is not annotated by VEP, or is damaged, or lacks what the rule needs.
    """
    row_of: dict[tuple[int, int, str, str], int] = {}
    columns = (variants[name].tolist() for name in ("chromosome", "position", "ref", "alt"))
    for row, key in enumerate(zip(*columns, strict=True)):
        row_of.setdefault(key, row)
    genes: dict[str, Gene] = {}
    pairs = []
    counts = vep.CsqCounts()
    for file in find_vcfs(path):
        vcf = open_vcf(file, sites=True, check=True)
        parser = vep.CsqParser(vep.csq_fields(header_lines(file), file, rule), rule, counts)
        for record in records(vcf, file):
            number, csq = autosome(record.CHROM), record.INFO.get("CSQ")
            label = f"{record.CHROM}:{record.POS}:{record.REF}"
            if not (all_filters or passes_filter(record.FILTER or ".")):
                pairs.append((-1, label, "", "", False, "filtered"))
                continue
            if not number or not csq:
                pairs.append((-1, label, "", "", False, "not_annotated" if number else "not_autosomal"))
                continue
            harmed, coding = parser.parse(csq, record.REF, list(record.ALT))
            for gene, symbol in coding.items():
                genes.setdefault(gene, Gene(number, record.POS, symbol))
            for alternative, why in zip(record.ALT, harmed, strict=True):
                if not why:
                    pairs.append((-1, f"{label}:{alternative}", "", "", False, "not_harmful"))
                    continue
                alleles = record.REF.upper(), alternative.upper()
                forward = row_of.get((number, record.POS, *alleles), -1)
                backward = row_of.get((number, record.POS, *alleles[::-1]), -1)
                row = forward if forward >= 0 else backward
                for gene, reason in sorted(why.items()):
                    verdict = "absent" if row < 0 else ""
                    pairs.append((row, f"{label}:{alternative}", gene, reason, forward < 0 <= row, verdict))
    counts.check(rule, path)
    names = ["variant", "label", "gene", "why", "count_ref", "fate"]
    return Annotations(pd.DataFrame(pairs, columns=names), genes, counts)


def _categories(masks: Path | None, mask: str | None, known: list[str], annotations: Path) -> set[str]:
    if mask is None:
        raise UserError(
            f"--mask: name the categories of {annotations} that count, e.g. {','.join(known[:2])}, or a mask of --masks"
        )
    if masks is None:
        categories = set(mask.split(","))
        if not categories & set(known):
            raise UserError(f"--mask {mask}: {annotations} has none of these; it holds {', '.join(known)}")
        return categories
    of_name = {row[0]: row[1] for row in _fields(masks, (2,), "name categories")}
    if mask not in of_name:
        raise UserError(f"--mask {mask}: {masks} has no such mask; it holds {', '.join(of_name)}")
    return set(of_name[mask].split(","))


def _fields(path: Path, widths: tuple[int, ...], names: str) -> list[list[str]]:
    """Split every line of a small table.

    Raises
    ------
    UserError
        A line has another number of columns; the message names the line.
    """
    lines = read_rows(path, f"give a text file of {names}")
    rows = [line.split() for _, line in lines]
    for (number, _), row in zip(lines, rows, strict=True):
        if len(row) not in widths:
            raise UserError(
                f"{path}: line {number} has {len(row)} columns, {' or '.join(map(str, widths))} ({names}) are needed; "
                f"{REMEDY}"
            )
    if not rows:
        raise UserError(f"{path}: is empty; give a table of {names}")
    return rows
