"""Annotations of Ensembl VEP in a VCF's ``CSQ`` field: the genes that each alternative allele damages, and the reason.

The header gives the order of the fields (https://www.ensembl.org/info/docs/tools/vep/vep_formats.html#vcfout).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mrmfast.errors import UserError

NEEDED = ("Consequence", "IMPACT", "Gene", "BIOTYPE")
LOF, MISSENSE = "loss_of_function", "missense"


@dataclass(frozen=True)
class HarmRule:
    """When a missense variant counts as harmful.

    Attributes
    ----------
    polyphen : float
        Minimum PolyPhen score (0 benign .. 1 damaging).
    sift : float
        Maximum SIFT score. SIFT's scale is reversed (0 deleterious .. 1 tolerated): the paper's ">= 0.8" is
        1 - SIFT >= 0.8, so SIFT <= 0.2.
    combine : {"either", "mean"}
        ``either`` prediction suffices, or, as in the code of the burden pipeline the study used (faatpipe), the
        ``mean`` of PolyPhen and 1 - SIFT, both given, reaches `polyphen`; with ``none`` no missense change counts.
    biotype : str
        Biotype of the transcripts that count.
    """

    polyphen: float = 0.8
    sift: float = 0.2
    combine: str = "either"
    biotype: str = "protein_coding"

    def is_harmful(self, sift: float | None, polyphen: float | None) -> bool:
        """Apply the rule to the predictions of one transcript; None means no prediction."""
        if self.combine == "none":
            return False
        if self.combine == "mean":
            # Rounded: the mean of 0.6 and 1.0 must reach 0.8.
            return sift is not None and polyphen is not None and round((polyphen + 1 - sift) / 2, 6) >= self.polyphen
        return (polyphen is not None and polyphen >= self.polyphen) or (sift is not None and sift <= self.sift)


def csq_fields(raw_header: str, path: Path) -> list[str]:
    """Return the names of the ``CSQ`` sub-fields, in order.

    Raises
    ------
    UserError
        The VCF was not annotated by VEP, or a required field is missing.
    """
    line = next((line for line in raw_header.splitlines() if re.match(r"##INFO=<ID=CSQ,", line)), None)
    if line is None:
        raise UserError(f"{path}: has no CSQ annotation; run Ensembl VEP with --vcf --sift b --polyphen b --biotype")
    layout = re.search(r"Format: ([^\">]+)", line)
    fields = layout.group(1).strip().split("|") if layout else []
    lacking = [name for name in NEEDED if name not in fields]
    if lacking or not {"Allele", "ALLELE_NUM"} & set(fields):
        raise UserError(
            f"{path}: CSQ lacks {', '.join(lacking) or 'Allele'}; run a recent Ensembl VEP with "
            "--vcf --sift b --polyphen b --biotype"
        )
    return fields


def prediction(text: str) -> float | None:
    """Return the number in ``deleterious(0.03)`` or ``0.03``; None if there is none."""
    number = re.search(r"\(?(\d*\.?\d+(?:[eE][-+]?\d+)?)\)?$", text)
    return float(number.group(1)) if number else None


def allele_labels(reference: str, alternatives: list[str]) -> list[set[str]]:
    """Return the labels that VEP may write for each alternative allele in ``Allele``.

    VEP drops the first base if all alleles of the site share it (an empty allele is ``-``). With ``--minimal`` VEP
    drops every base that an alternative shares with the reference at either end.

    Returns
    -------
    list of set of str
        For each alternative; an ambiguous label belongs to no alternative.
    """
    alleles = [reference, *alternatives]
    share = len({allele[:1] for allele in alleles}) == 1 and any(len(allele) != len(reference) for allele in alleles)
    exact = [(alternative[1:] or "-") if share else alternative for alternative in alternatives]
    labels = [{label} for label in exact]
    for number, alternative in enumerate(alternatives):
        for label in {alternative, _minimal(reference, alternative)} - set(exact):
            others = alternatives[:number] + alternatives[number + 1 :]
            if all(label not in (other, _minimal(reference, other)) for other in others):
                labels[number].add(label)
    return labels


def _minimal(reference: str, alternative: str) -> str:
    while reference and alternative and reference[0] == alternative[0]:
        reference, alternative = reference[1:], alternative[1:]
    while reference and alternative and reference[-1] == alternative[-1]:
        reference, alternative = reference[:-1], alternative[:-1]
    return alternative or "-"


class CsqParser:
    """Parse ``CSQ`` values of one VCF.

    Parameters
    ----------
    fields : list of str
        From :func:`csq_fields`.
    rule : HarmRule
    """

    def __init__(self, fields: list[str], rule: HarmRule) -> None:
        self.column = {name: number for number, name in enumerate(fields)}
        self.width = len(fields)
        self.rule = rule
        self.malformed = 0
        self.allele_unknown = 0

    def parse(self, csq: str, reference: str, alternatives: list[str]) -> tuple[list[dict[str, str]], dict[str, str]]:
        """Find the genes that each alternative allele damages.

        Only transcripts of the rule's biotype count. Transcripts subject to nonsense-mediated decay do not count
        (biotype ``nonsense_mediated_decay``, consequence ``NMD_transcript_variant``).

        Returns
        -------
        list of dict
            For each alternative: gene -> ``loss_of_function`` or ``missense`` (loss of function takes precedence).
        dict
            Every gene with a transcript that counts -> its symbol ("" if not given).
        """
        harmed: list[dict[str, str]] = [{} for _ in alternatives]
        genes: dict[str, str] = {}
        labels = allele_labels(reference, alternatives)
        for annotation in csq.split(","):
            values = annotation.split("|")
            if len(values) != self.width:
                self.malformed += 1
                continue
            consequences = values[self.column["Consequence"]].split("&")
            gene = values[self.column["Gene"]]
            if not gene or values[self.column["BIOTYPE"]] != self.rule.biotype:
                continue
            if "NMD_transcript_variant" in consequences:
                continue
            genes[gene] = self._value(values, "SYMBOL")
            why = self._why(values, consequences)
            if why is None:
                continue
            number = self._alternative(values, labels)
            if number is None:
                self.allele_unknown += 1
            elif harmed[number].get(gene) != LOF:
                harmed[number][gene] = why
        return harmed, genes

    def _value(self, values: list[str], name: str) -> str:
        return values[self.column[name]] if name in self.column else ""

    def _why(self, values: list[str], consequences: list[str]) -> str | None:
        if values[self.column["IMPACT"]] == "HIGH":
            return LOF
        if "missense_variant" not in consequences:
            return None
        sift, polyphen = (prediction(self._value(values, name)) for name in ("SIFT", "PolyPhen"))
        return MISSENSE if self.rule.is_harmful(sift, polyphen) else None

    def _alternative(self, values: list[str], labels: list[set[str]]) -> int | None:
        number = self._value(values, "ALLELE_NUM")
        if number.isdigit() and 1 <= int(number) <= len(labels):
            return int(number) - 1
        allele = self._value(values, "Allele")
        return next((index for index, names in enumerate(labels) if allele in names), None)
