"""VEP's annotations as VEP writes them: ``*`` and symbols beside indels, missing predictions, missing BIOTYPE.

Right values: :func:`vep_alleles`, a transcription of ``create_VariationFeatures`` in VEP's Parser/VCF.pm (release 111),
which says how VEP labels each allele of a site.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from preprocess.genetics.burden import vep
from tests.helpers.genetics_cases import (
    complaint,
    csq,
    opened,
    people,
    preprocess,
    unpacked,
    write_bed,
    write_vcf,
)

FRAMESHIFT, STOP, MISSENSE = ("frameshift_variant", "HIGH"), ("stop_gained", "HIGH"), ("missense_variant", "MODERATE")
NO_PREDICTIONS = "Allele|Consequence|IMPACT|SYMBOL|Gene|BIOTYPE"


def vep_alleles(reference: str, alternatives: list[str]) -> list[str]:
    """Line by line as in VEP: which label each alternative gets."""
    is_indel = any(alt[0] in "DI" or len(alt) != len(reference) for alt in alternatives)
    if len(alternatives) > 1:
        first_bases = {allele[0] for allele in [reference, *alternatives] if "*" not in allele}
        if is_indel and len(first_bases) == 1:
            return [alt if "*" in alt else alt[1:] or "-" for alt in alternatives]
    elif is_indel and reference[0] == alternatives[0][0]:
        return [alternatives[0][1:] or "-"]
    return alternatives


SITES = [
    ("CAA", ["CA", "CAAA", "*"]),
    ("CA", ["C", "*", "CAA"]),
    ("A", ["*", "AT", "ATT"]),
    ("AC", ["A", "<*>"]),
    ("A", ["T", "<*>"]),
    ("A", ["T", "*"]),
    ("ACC", ["*", "AC", "A", "ACCC"]),
    ("GTT", ["G", "*", "GT", "GTTT", "TTT"]),
    ("TAA", ["T", "TA", "TAAA"]),
    ("AG", ["TC", "*"]),
    ("cA", ["c", "*"]),
]


@pytest.mark.parametrize(("reference", "alternatives"), SITES)
def test_the_labels_of_vep_give_the_right_carriers_and_genes(tmp_path, reference, alternatives):
    """Each allele damages a gene of its own, and each participant carries one allele."""
    labels = vep_alleles(reference, alternatives)
    harmed = [(n, label) for n, label in enumerate(labels) if alternatives[n] not in ("*", "<*>")]
    annotations = [csq(label, *FRAMESHIFT, f"GENE{number}") for number, label in harmed]
    calls = {number: f"0/{number + 1}" for number in range(len(alternatives))}
    row = ("1", 100, reference, ",".join(alternatives), annotations, calls)
    path = write_vcf(tmp_path / "a.vcf", [row], people(60))
    preprocess("burden", path, "--max-maf", 0.1, "--out", tmp_path / "d")
    modality = opened(tmp_path / "d", "burden")
    carriers = {
        gene: np.flatnonzero(bits).tolist()
        for gene, bits in zip(modality.features.name, unpacked(modality).T, strict=True)
    }
    order = [people(60).index(name) for name in modality.participants]
    assert {gene: [order[row] for row in rows] for gene, rows in carriers.items()} == {
        f"GENE{number}": [number] for number, _ in harmed
    }
    report = json.loads((tmp_path / "d/reports/burden.json").read_text())
    assert report["annotations"]["annotations_allele_unknown"] == 0


def test_symbolic_alleles_beside_indels():
    assert vep.allele_labels("CAA", ["CA", "CAAA", "<NON_REF>"])[:2] == [{"A", "CA", "-"}, {"AAA", "CAAA"}]
    labels = vep.allele_labels("AC", ["A", "<DEL>", "<DUP:TANDEM>"])
    assert labels[0] >= {"-"}
    assert labels[1] >= {"<DEL>", "DELETION"}
    assert labels[2] >= {"DUPLICATION"}
    assert not labels[0] & labels[1]


def test_placeholders_are_never_counted_and_unknown_alleles_are_told(tmp_path, capsys):
    rows = [
        ("1", 10, "A", "T,*", [csq("T", *STOP, "A"), csq("*", *STOP, "STAR")], {0: "0/1", 1: "0/2"}),
        ("1", 20, "A", "T,<NON_REF>", [csq("T", *STOP, "B"), csq("<NON_REF>", *STOP, "NONREF")], {2: "0/1", 3: "0/2"}),
        ("1", 30, "AC", "A", [csq("GGG", *STOP, "LOST")], {4: "0/1"}),
    ]
    path = write_vcf(tmp_path / "a.vcf", rows, people(60))
    preprocess("burden", path, "--max-maf", 0.1, "--out", tmp_path / "d")
    modality = opened(tmp_path / "d", "burden")
    assert modality.features.name.tolist() == ["A", "B"]
    assert unpacked(modality).sum(axis=0).tolist() == [1, 1]
    assert "1 harmful annotations name an allele that their site does not have" in capsys.readouterr().out


def cases() -> dict[str, tuple[str, list[str], tuple, str]]:
    """Name -> fields of CSQ, annotations, options, words of the error (none: it must work)."""
    stop, words = csq("T", *STOP, "S"), csq("T", *MISSENSE, "M", "deleterious", "probably_damaging")

    def short(text: str) -> str:
        return "|".join(text.split("|")[:6])

    missense = csq("T", *MISSENSE, "M")
    scored = csq("T", *MISSENSE, "M", "deleterious", "probably_damaging(0.99)")
    return {
        "no columns": (NO_PREDICTIONS, [short(stop), short(missense)], (), "CSQ lacks SIFT and PolyPhen"),
        "no columns, none": (NO_PREDICTIONS, [short(stop), short(missense)], ("--missense-rule", "none"), ""),
        "words only": ("", [stop, words], (), "only words"),
        "words only, mean": ("", [stop, words], ("--missense-rule", "mean"), "only words"),
        "words and one score": ("", [stop, scored], (), ""),
        "one score, mean": ("", [stop, scored], ("--missense-rule", "mean"), "only words"),
        "one column, mean": (
            NO_PREDICTIONS + "|SIFT",
            [short(stop) + "|"],
            ("--missense-rule", "mean"),
            "lacks PolyPhen",
        ),
        "one column": (NO_PREDICTIONS + "|SIFT", [short(stop) + "|", short(missense) + "|d(0.01)"], (), ""),
        "no biotype": ("", [text.replace("protein_coding", "") for text in (stop, scored)], (), "BIOTYPE is empty"),
        "another biotype": ("", [stop], ("--biotype", "protein-coding"), "it has protein_coding"),
    }


@pytest.mark.parametrize("sites", [False, True])
@pytest.mark.parametrize("name", cases())
def test_what_the_annotation_lacks_is_told(tmp_path, capsys, name, sites):
    fields, annotations, options, words = cases()[name]
    rows = [("1", 10 + n, "A", "T", [text], {n: "0/1"}) for n, text in enumerate(annotations)]
    path = write_vcf(tmp_path / "a.vcf", rows, people(60), *([fields] if fields else []))
    arguments: tuple = ("burden", path, "--max-maf", 0.1, "--out", tmp_path / "d", *options)
    if sites:
        calls = np.zeros((60, len(rows)))
        calls[np.arange(len(rows)), np.arange(len(rows))] = 1
        position = [10 + n for n in range(len(rows))]
        alleles = {"allele_1": ["T"] * len(rows), "allele_2": ["A"] * len(rows)}
        bed = write_bed(tmp_path / "g/a.bed", calls, people(60), bp_position=position, **alleles)
        arguments = ("burden", bed, "--annotations", path, *arguments[2:])
    if words:
        message = complaint(capsys, *arguments)
        assert words in message
        assert "--" in message, "the remedy"
        return
    preprocess(*arguments)
    genes = opened(tmp_path / "d", "burden").features.name.tolist()
    assert genes == (["S"] if "none" in options else ["S", "M"])


def test_missing_predictions_among_others_are_counted(tmp_path, capsys):
    rows = [
        ("1", 10, "A", "T", [csq("T", *MISSENSE, "A", "deleterious(0.01)")], {0: "0/1"}),
        ("1", 20, "A", "T", [csq("T", *MISSENSE, "B")], {1: "0/1"}),
        ("1", 30, "A", "T", [csq("T", *STOP, "C", biotype="").replace("protein_coding", "")], {2: "0/1"}),
    ]
    path: Path = write_vcf(tmp_path / "a.vcf", rows, people(60))
    preprocess("burden", path, "--max-maf", 0.1, "--out", tmp_path / "d")
    told = capsys.readouterr().out
    assert "1 missense annotations have no prediction" in told
    assert "1 annotations have no BIOTYPE" in told
