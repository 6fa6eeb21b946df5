"""Annotations of Ensembl VEP in a VCF's ``CSQ`` field: the genes that each alternative allele damages, and the reason.

The header gives the order of the fields (https://www.ensembl.org/info/docs/tools/vep/vep_formats.html#vcfout).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mrmfast.errors import UserError
from preprocess.genetics.genotypes.tables import is_sequence

NEEDED = ("Consequence", "IMPACT", "Gene", "BIOTYPE")
LOF, MISSENSE = "loss_of_function", "missense"
# Sequence Ontology terms of symbolic alleles, in upper case.
STRUCTURAL = {
    "DEL": "DELETION",
    "INS": "INSERTION",
    "DUP": "DUPLICATION",
    "TDUP": "TANDEM_DUPLICATION",
    "INV": "INVERSION",
    "CNV": "COPY_NUMBER_VARIATION",
}
# No allele of its own: a deletion that begins before the site, or any other allele.
PLACEHOLDERS = ("*", "<*>", "<NON_REF>")
RUN_VEP = "run Ensembl VEP with --vcf --sift b --polyphen b --biotype"
MOST_BIOTYPES = 100  # remembered for messages


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

    @property
    def predictions(self) -> tuple[str, ...]:
        """The ``CSQ`` fields that the rule reads."""
        return () if self.combine == "none" else ("SIFT", "PolyPhen")

    def can_judge(self, sift: float | None, polyphen: float | None) -> bool:
        """Whether the predictions suffice for the rule."""
        given = [prediction is not None for prediction in (sift, polyphen)]
        return all(given) if self.combine == "mean" else any(given)


def csq_fields(header: list[bytes], path: Path, rule: HarmRule) -> list[str]:
    """Return the names of the ``CSQ`` sub-fields, in order.

    Raises
    ------
    UserError
        The VCF was not annotated by VEP, or a field that the rule needs is missing.
    """
    texts = (line.decode(errors="replace") for line in header if line.startswith(b"##INFO=<"))
    line = next((line for line in texts if re.match(r"##INFO=<(.*,)?ID=CSQ,", line)), None)
    if line is None:
        raise UserError(f"{path}: has no CSQ annotation; {RUN_VEP}")
    layout = re.search(r"Format: ([^\">]+)", line)
    fields = layout.group(1).strip().split("|") if layout else []
    lacking = [name for name in NEEDED if name not in fields]
    if lacking or not {"Allele", "ALLELE_NUM"} & set(fields):
        raise UserError(f"{path}: CSQ lacks {', '.join(lacking) or 'Allele'}; {RUN_VEP}")
    absent = [name for name in rule.predictions if name not in fields]
    if len(absent) == 2 or (absent and rule.combine == "mean"):
        raise UserError(
            f"{path}: CSQ lacks {' and '.join(absent)}, so no missense change can count (without --biotype, BIOTYPE is "
            f"empty too); {RUN_VEP}, or use --missense-rule none"
        )
    return fields


def prediction(text: str) -> float | None:
    """Return the number in ``deleterious(0.03)`` or ``0.03``; None if there is none."""
    number = re.search(r"\(?(\d*\.?\d+(?:[eE][-+]?\d+)?)\)?$", text)
    return float(number.group(1)) if number else None


def allele_labels(reference: str, alternatives: list[str]) -> list[set[str]]:
    """Return the labels that VEP may write for each alternative allele in ``Allele``, in upper case.

    VEP drops the first base if all alleles of the site share it (an empty allele is ``-``); alleles with ``*`` are
    neither compared nor cut (``create_VariationFeatures`` in VEP's Parser/VCF.pm). The same holds here for symbolic
    alleles (``<NON_REF>``), which VEP also names by their kind (``deletion``). With ``--minimal`` VEP drops every base
    that an alternative shares with the reference at either end.

    Example: the labels of REF CAA and ALT CA, CAAA, ``*`` are A, AAA and ``*``.

    Returns
    -------
    list of set of str
        For each alternative; an ambiguous label belongs to no alternative.
    """
    reference, alternatives = reference.upper(), [alternative.upper() for alternative in alternatives]
    sequences = [reference, *(allele for allele in alternatives if is_sequence(allele))]
    # As in VEP, an allele of another length makes the site an indel even if it is no sequence.
    is_indel = any(len(allele) != len(reference) for allele in alternatives)
    share = is_indel and len({allele[:1] for allele in sequences}) == 1
    exact = [(allele[1:] or "-") if share and is_sequence(allele) else allele for allele in alternatives]
    others = [_other_labels(reference, allele) for allele in alternatives]
    labels = [{label} for label in exact]
    for number, names in enumerate(others):
        for label in names - set(exact):
            if not any(label in other for index, other in enumerate(others) if index != number):
                labels[number].add(label)
    return labels


def _other_labels(reference: str, alternative: str) -> set[str]:
    """Return the labels of an alternative allele that do not depend on the other alleles of its site."""
    if is_sequence(alternative):
        return {alternative, _minimal(reference, alternative)}
    kind = alternative.strip("<>")
    return {alternative, kind, STRUCTURAL.get(kind.partition(":")[0], kind)}


def _minimal(reference: str, alternative: str) -> str:
    while reference and alternative and reference[0] == alternative[0]:
        reference, alternative = reference[1:], alternative[1:]
    while reference and alternative and reference[-1] == alternative[-1]:
        reference, alternative = reference[:-1], alternative[:-1]
    return alternative or "-"


@dataclass
class CsqCounts:
    """What the annotations of all files hold.

    Attributes
    ----------
    malformed : int
        Annotations with another number of fields than the header.
    allele_unknown : int
        Harmful annotations whose allele is none of the site's.
    missense, judged, words : int
        Annotated missense changes; those with the predictions that the rule needs; those without, although a prediction
        is given in words.
    biotypes : Counter
        Annotated transcripts by biotype.
    """

    malformed: int = 0
    allele_unknown: int = 0
    missense: int = 0
    judged: int = 0
    words: int = 0
    biotypes: Counter[str] = field(default_factory=Counter)

    def check(self, rule: HarmRule, path: Path) -> None:
        """Check that the annotations can answer the rule.

        Raises
        ------
        UserError
            No transcript has the rule's biotype, or predictions are words without scores.
        """
        if self.biotypes and not self.biotypes[rule.biotype]:
            if not any(self.biotypes):
                raise UserError(f"{path}: BIOTYPE is empty in all annotations; {RUN_VEP}")
            names = ", ".join(sorted(filter(None, self.biotypes))[:5])
            raise UserError(f"--biotype {rule.biotype}: no annotation of {path} has it; it has {names}")
        if self.words and not self.judged:
            raise UserError(
                f"{path}: none of {self.missense} missense changes has a score of {' and '.join(rule.predictions)}, "
                f"only words or nothing; {RUN_VEP} (b: both word and score), or use --missense-rule none"
            )

    def report(self) -> dict[str, int]:
        """Return the counts for the report."""
        return {
            "annotations_malformed": self.malformed,
            "annotations_allele_unknown": self.allele_unknown,
            "annotations_without_biotype": self.biotypes[""],
            "missense_annotations": self.missense,
            "missense_without_prediction": self.missense - self.judged,
        }


class CsqParser:
    """Parse ``CSQ`` values of one VCF.

    Parameters
    ----------
    fields : list of str
        From :func:`csq_fields`.
    rule : HarmRule
    counts : CsqCounts
        Changed in place.
    """

    def __init__(self, fields: list[str], rule: HarmRule, counts: CsqCounts) -> None:
        self.column = {name: number for number, name in enumerate(fields)}
        self.width = len(fields)
        self.rule = rule
        self.counts = counts

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
                self.counts.malformed += 1
                continue
            consequences = values[self.column["Consequence"]].split("&")
            gene, biotype = values[self.column["Gene"]], values[self.column["BIOTYPE"]]
            if not gene:
                continue
            if biotype in self.counts.biotypes or len(self.counts.biotypes) < MOST_BIOTYPES:
                self.counts.biotypes[biotype] += 1
            if biotype != self.rule.biotype:
                continue
            if "NMD_transcript_variant" in consequences:
                continue
            genes[gene] = self._value(values, "SYMBOL")
            why = self._why(values, consequences)
            if why is None:
                continue
            number = self._alternative(values, labels)
            if number is None:
                self.counts.allele_unknown += 1
            elif alternatives[number].upper() in PLACEHOLDERS:
                continue
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
        texts = [self._value(values, name) for name in ("SIFT", "PolyPhen")]
        sift, polyphen = (prediction(text) for text in texts)
        if self.rule.predictions:
            judged = self.rule.can_judge(sift, polyphen)
            self.counts.missense += 1
            self.counts.judged += judged
            self.counts.words += not judged and any(texts)
        return MISSENSE if self.rule.is_harmful(sift, polyphen) else None

    def _alternative(self, values: list[str], labels: list[set[str]]) -> int | None:
        number = self._value(values, "ALLELE_NUM")
        if number.isdigit() and 1 <= int(number) <= len(labels):
            return int(number) - 1
        allele = self._value(values, "Allele").upper()
        return next((index for index, names in enumerate(labels) if allele in names), None)
