"""Burden against regenie's masks, slow loops, and every class of variant and damage."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pgenlib
import pytest
from bed_reader import open_bed

from mrmfast.errors import UserError
from preprocess.genetics.burden import scan, vep
from preprocess.genetics.genotypes import Genotypes, open_genotypes
from tests.helpers.genetics_cases import (
    DATA,
    all_bytes,
    burden_rows,
    complaint,
    csq,
    needs_data,
    opened,
    people,
    preprocess,
    unpacked,
    write_bed,
    write_vcf,
)

REGENIE = DATA / "genetics/regenie"
VEP = DATA / "genetics/vep"
HIGH = ("stop_gained", "HIGH")


def carriers_of(modality) -> dict[str, list[int]]:
    bits = unpacked(modality)
    return {name: np.flatnonzero(bits[:, column]).tolist() for column, name in enumerate(modality.features.name)}


def ledger(dataset: Path) -> pd.DataFrame:
    return pd.read_csv(dataset / "reports/burden_variants.tsv.gz", sep="\t", keep_default_na=False, dtype=str)


def rare_calls(samples: int, variants: int, seed: int = 0) -> np.ndarray:
    """Copies of ALT, -9 missing, shape (variants, samples): rare, common, ALT-major, unseen and missing ones."""
    rng = np.random.default_rng(seed)
    frequency = rng.choice([0.002, 0.006, 0.3, 0.995, 0.0], variants)
    calls = rng.binomial(2, frequency[:, None], (variants, samples)).astype(np.int8)
    calls[rng.random(calls.shape) < 0.01] = -9
    calls[-1] = -9
    return calls


def write_hard_pgen(path: Path, calls: np.ndarray, ids: list[str], alleles: tuple[str, str] = ("A", "G")) -> Path:
    writer = pgenlib.PgenWriter(str(path).encode(), calls.shape[1], variant_ct=len(calls), nonref_flags=False)
    for row in calls:
        writer.append_biallelic(row)
    writer.close()
    lines = [
        f"{1 + number % 22}\t{100 + number}\tv{number}\t{alleles[0]}\t{alleles[1]}" for number in range(len(calls))
    ]
    path.with_suffix(".pvar").write_text("\n".join(["#CHROM\tPOS\tID\tREF\tALT", *lines]) + "\n")
    path.with_suffix(".psam").write_text("\n".join(["#IID", *ids]) + "\n")
    return path


def slow_burden(calls: np.ndarray, genes: list[str], max_maf: float) -> dict[str, np.ndarray]:
    """Largest number of copies of a rare variant in each gene, by the rule in words."""
    burden: dict[str, np.ndarray] = {}
    for row, gene in zip(calls, genes, strict=True):
        known = row[row >= 0]
        frequency = known.sum() / (2 * len(known)) if len(known) else 0
        if 0 < frequency < max_maf:
            burden[gene] = np.maximum(burden.get(gene, 0), np.maximum(row, 0))
    return burden


@needs_data
@pytest.mark.parametrize("annotations", ["example_3chr.annotations", "example_3chr.annotationsV2"])
def test_burden_equals_regenies_set1_m1_exactly(tmp_path, annotations):
    """regenie's --build-mask max with pLof and --aaf-bins 0.2; A1 is its ALT in these files."""
    preprocess(
        *("burden", REGENIE / "example_3chr.bed", "--annotations", REGENIE / annotations, "--reference", "a2"),
        *("--sets", REGENIE / "example_3chr.setlist", "--masks", REGENIE / "example_3chr.masks", "--mask", "M1"),
        *("--max-maf", 0.2, "--code", "copies", "--out", tmp_path / "d"),
    )
    modality = opened(tmp_path / "d", "burden")
    oracle = open_bed(REGENIE / "example_3chr_masks.bed")
    expected = oracle.read(dtype="int8")[:, list(oracle.sid).index("SET1.M1.0.2")]
    assert modality.participants.tolist() == list(oracle.iid)
    mine = unpacked(modality)[:, modality.features.name.tolist().index("SET1")]
    np.testing.assert_array_equal(mine, expected)
    assert len(mine) == 500
    assert set(expected.tolist()) == {0, 1, 2}
    rows = ledger(tmp_path / "d")
    counted = rows[(rows["gene"] == "SET1") & (rows["fate"] == "counted")]["variant"].tolist()
    assert len(counted) == 18
    assert counted[:3] == ["mog_2", "mog_3", "mog_5"]


@needs_data
def test_the_bit_is_the_mask_above_zero_and_the_reference_matters(tmp_path, capsys):
    common = ("burden", REGENIE / "example_3chr.bed", "--annotations", REGENIE / "example_3chr.annotations")
    common += ("--sets", REGENIE / "example_3chr.setlist", "--mask", "pLof", "--max-maf", 0.2)
    preprocess(*common, "--reference", "a2", "--out", tmp_path / "d")
    oracle = open_bed(REGENIE / "example_3chr_masks.bed").read(dtype="int8")[:, 0]
    modality = opened(tmp_path / "d", "burden")
    np.testing.assert_array_equal(unpacked(modality)[:, modality.features.name.tolist().index("SET1")], oracle > 0)
    # Counted from the wrong side every ALT is common: docs/genetics-pitfalls.md#a1-is-not-the-reference
    message = complaint(capsys, *common, "--reference", "a1", "--out", tmp_path / "e")
    assert "no participant carries a harmful variant" in message


@pytest.mark.parametrize("kind", ["pgen", "bed"])
@pytest.mark.parametrize("code", ["carrier", "copies"])
def test_burden_of_plink_files_equals_a_slow_loop(tmp_path, kind, code):
    ids = ["-5", *people(298), "-6"]
    calls = rare_calls(300, 120)
    genes = [f"G{number % 7}" for number in range(120)]
    if kind == "pgen":
        source, more = write_hard_pgen(tmp_path / "g.pgen", calls, ids), ()
    else:
        properties = {
            "sid": [f"v{number}" for number in range(120)],
            "chromosome": [str(1 + number % 22) for number in range(120)],
        }
        properties |= {name: ["A"] * 120 for name in ("allele_1", "allele_2")}
        properties["bp_position"] = list(range(100, 220))
        source = write_bed(tmp_path / "g.bed", np.where(calls < 0, -127, calls).T, ids, **properties)
        more = ("--reference", "a2")
    # One gene lies on several chromosomes here, as a table may say; each is a feature of its own.
    table = tmp_path / "table"
    table.write_text("".join(f"v{number} {gene} lof\n" for number, gene in enumerate(genes)))
    preprocess(
        "burden", source, "--annotations", table, "--mask", "lof", "--code", code, "--out", tmp_path / "d", *more
    )
    modality = opened(tmp_path / "d", "burden")
    assert modality.participants.tolist() == people(298)
    named = [f"{gene}@{1 + number % 22}" for number, gene in enumerate(genes)]
    expected = slow_burden(calls[:, 1:-1], named, 0.01)
    got = dict(
        zip(
            [f"{g}@{c}" for g, c in zip(modality.features.name, modality.features.chromosome, strict=True)],
            unpacked(modality).T,
            strict=True,
        )
    )
    assert got.keys() == expected.keys()
    for name, row in expected.items():
        np.testing.assert_array_equal(got[name], row if code == "copies" else row > 0)
    fates = ledger(tmp_path / "d").set_index("variant")["fate"]
    assert set(fates) == {"counted", "too_common", "alt_is_major", "not_carried"}
    assert fates["v119"] == "not_carried", "no call at all"


def test_sparse_and_dense_reads_agree(tmp_path):
    calls = rare_calls(300, 60, seed=3)
    genotypes = open_genotypes(write_hard_pgen(tmp_path / "g.pgen", calls, people(300)))
    rows = np.arange(60)
    turned = np.arange(60) % 2 == 1
    assert 0 < genotypes.files[0].reader.sparse_carriers(rows, np.arange(300))[0].sum() < 60
    copies = np.where(turned[:, None], np.where(calls < 0, calls, 2 - calls), calls)
    expected = [row[row >= 0].sum() / max(1, 2 * (row >= 0).sum()) for row in copies]
    np.testing.assert_array_equal(scan.frequencies(genotypes.genotype_counts(rows), turned), expected)
    for memory in (1, 1 << 20):
        which, samples, found = genotypes.carriers(rows, turned, memory)
        dense = np.zeros_like(copies)
        dense[which, samples] = found
        # pgenlib marks a missing call as -9 in dense reads and as it is stored in sparse ones.
        np.testing.assert_array_equal(np.where(dense < 0, -9, dense), copies)
        assert (np.diff(which) >= 0).all()


def test_veps_sites_find_variants_by_place_and_alleles(tmp_path):
    """Whichever allele the genotypes call REF, the harmful one is VEP's ALT.

    See docs/genetics-pitfalls.md#a1-is-not-the-reference.
    """
    calls = np.zeros((4, 300), dtype=np.int8)
    calls[0, [1, 2]] = 1
    calls[1] = 2
    calls[1, [5, 6]] = 1
    calls[2, 7] = 1
    calls[3, 8] = 1
    pgen = write_hard_pgen(tmp_path / "g.pgen", calls, people(300))
    rows = [
        ("1", 100, "A", "G", [csq("G", *HIGH, "ONE")], {}),
        ("2", 101, "G", "A", [csq("A", *HIGH, "TWO")], {}),  # the genotypes have A as REF and count G
        ("3", 102, "A", "T", [csq("T", *HIGH, "THREE")], {}),  # other alleles
        ("9", 9, "A", "T", [csq("T", *HIGH, "NINE")], {}),
    ]
    sites = write_vcf(tmp_path / "sites.vcf", rows, [])
    preprocess("burden", pgen, "--annotations", sites, "--out", tmp_path / "d")
    assert carriers_of(opened(tmp_path / "d", "burden")) == {"ONE": [1, 2], "TWO": [5, 6]}
    rows = ledger(tmp_path / "d")
    assert rows.set_index("gene")["fate"].to_dict() == {
        "ONE": "counted",
        "TWO": "counted",
        "THREE": "absent",
        "NINE": "absent",
    }


def test_repeated_ids_and_multi_allelic_sites_in_tables(tmp_path):
    """See docs/genetics-pitfalls.md#duplicates-and-ambiguous-variants."""
    calls = np.zeros((5, 200), dtype=np.int8)
    calls[:, 3] = 1
    pgen = write_hard_pgen(tmp_path / "g.pgen", calls, people(200))
    pvar = pgen.with_suffix(".pvar")
    pvar.write_text(pvar.read_text().replace("\tv1\t", "\tv0\t").replace("5\t104", "X\t104"))
    table = tmp_path / "table"
    table.write_text("v0 A lof\nv2 B lof\nv3 C missense\nv4 D lof\nv9 E lof\n")
    preprocess("burden", pgen, "--annotations", table, "--mask", "lof", "--out", tmp_path / "d")
    assert carriers_of(opened(tmp_path / "d", "burden")) == {"B": [3]}
    assert ledger(tmp_path / "d").set_index("gene")["fate"].to_dict() == {
        "A": "id_repeats",
        "B": "counted",
        "C": "not_in_mask",
        "D": "not_autosomal",
        "E": "absent",
    }


def test_mistakes_in_tables_are_named(tmp_path, capsys):
    pgen = write_hard_pgen(tmp_path / "g.pgen", rare_calls(50, 10), people(50))
    table, sets, masks = tmp_path / "table", tmp_path / "sets", tmp_path / "masks"
    table.write_text("v0 G lof\nv1 G lof\n")
    sets.write_text("G 1 100 v0,v1\n")
    masks.write_text("M1 lof\n")

    def complain(*more: object) -> str:
        return complaint(capsys, "burden", pgen, "--out", tmp_path / "d", *more)

    assert "--annotations" in complain()
    assert "lof" in complain("--annotations", table)
    assert "holds lof" in complain("--annotations", table, "--mask", "pLof")
    assert "holds M1" in complain("--annotations", table, "--masks", masks, "--mask", "M2")
    assert "names REF" in complain("--annotations", table, "--mask", "lof", "--reference", "a2")
    table.write_text("v0 G lof\nv1 G\n")
    assert "table: line 2 has 2 columns" in complain("--annotations", table, "--mask", "lof")
    table.write_text("v0 G lof\nv1 G lof\n")
    sets.write_text("G 1 here v0,v1\n")
    assert "sets: line 1: column 3" in complain("--annotations", table, "--mask", "lof", "--sets", sets)
    assert "cannot be read" in complain("--annotations", tmp_path / "none", "--mask", "lof")
    bed = write_bed(tmp_path / "b.bed", np.zeros((20, 3)), people(20))
    message = complaint(capsys, "burden", bed, "--annotations", table, "--mask", "lof", "--out", tmp_path / "d")
    assert "--reference" in message
    vcf = write_vcf(tmp_path / "v.vcf", burden_rows(), people(200))
    assert "applies to a table of --annotations" in complaint(
        capsys, "burden", vcf, "--mask", "lof", "--out", tmp_path / "d"
    )


# What becomes of every VCF of the shared folder as a source of genotypes.
@needs_data
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("split-vep.vcf", "has no samples, only sites"),
        ("test.region.vep.vcf", "CSQ lacks IMPACT"),
        ("test4.vep.snpeff.vcf", "CSQ lacks IMPACT"),
        ("test5.vep.snpeff.vcf", "CSQ lacks IMPACT"),
    ],
)
def test_real_vcfs_are_refused_with_the_reason(tmp_path, capsys, name, word):
    message = complaint(capsys, "burden", VEP / name, "--out", tmp_path / "d")
    assert name in message
    assert word in message


@needs_data
def test_802_real_sites_annotate_genotypes(tmp_path):
    lines = [line.split("\t") for line in (VEP / "split-vep.vcf").read_text().splitlines() if line[0] != "#"]
    assert len(lines) == 802
    header = next(line for line in (VEP / "split-vep.vcf").read_text().splitlines() if "ID=CSQ" in line)
    fields = header.split("Format: ")[1].split('"')[0].split("|")
    assert len(fields) == 84
    # The rule in words, straight from the text: HIGH on a protein-coding transcript without NMD.
    harmful = set()
    for chromosome, position, _, ref, alt, _, _, info in (line[:8] for line in lines):
        values = next((part[4:] for part in info.split(";") if part.startswith("CSQ=")), "")
        for one in filter(None, values.split(",")):
            row = dict(zip(fields, one.split("|"), strict=True))
            high = row["IMPACT"] == "HIGH" and row["BIOTYPE"] == "protein_coding"
            if high and "NMD_transcript_variant" not in row["Consequence"] and "," not in alt:
                harmful.add((chromosome, position, ref, alt, row["Gene"]))
    autosomal = {row for row in harmful if row[0].removeprefix("chr").isdigit()}
    places = sorted({row[:4] for row in autosomal}) or [("1", "1", "A", "G")]
    calls = np.zeros((len(places), 300), dtype=np.int8)
    calls[np.arange(len(places)), np.arange(len(places)) % 300] = 1
    pgen = write_hard_pgen(tmp_path / "g.pgen", calls, people(300))
    table = [f"{c}\t{p}\t.\t{r}\t{a}" for c, p, r, a in places]
    pgen.with_suffix(".pvar").write_text("\n".join(["#CHROM\tPOS\tID\tREF\tALT", *table]) + "\n")
    preprocess(
        *("burden", pgen, "--annotations", VEP / "split-vep.vcf", "--missense-rule", "none", "--out", tmp_path / "d")
    )
    expected: dict[str, set[int]] = {}
    for number, place in enumerate(places):
        for row in autosomal:
            if row[:4] == place:
                expected.setdefault(row[4], set()).add(number % 300)
    assert carriers_of(opened(tmp_path / "d", "burden")) == {gene: sorted(who) for gene, who in expected.items()}


def test_thresholds_biotype_and_missense_rule_are_options(tmp_path, capsys):
    missense = ("missense_variant", "MODERATE")
    rows = [
        ("1", 10, "A", "T", [csq("T", *missense, "A", "tolerated(0.5)", "possibly_damaging(0.6)")], {0: "0/1"}),
        ("1", 20, "A", "T", [csq("T", *HIGH, "B", biotype="lncRNA")], {1: "0/1"}),
        ("1", 30, "A", "T", [csq("T", *HIGH, "C")], {2: "0/1", 3: "0/1", 4: "0/1"}),
    ]
    vcf = write_vcf(tmp_path / "v.vcf", rows, people(100))

    def run(name: str, *options: object) -> dict[str, list[int]]:
        preprocess("burden", vcf, "--out", tmp_path / name, "--max-maf", 0.1, *options)
        return carriers_of(opened(tmp_path / name, "burden"))

    assert run("a") == {"C": [2, 3, 4]}
    assert run("b", "--min-polyphen", 0.6) == {"A": [0], "C": [2, 3, 4]}
    assert run("c", "--max-sift", 0.5) == {"A": [0], "C": [2, 3, 4]}
    assert run("d", "--max-sift", 0.5, "--missense-rule", "none") == {"C": [2, 3, 4]}
    assert run("e", "--biotype", "lncRNA") == {"B": [1]}
    message = complaint(capsys, "burden", vcf, "--out", tmp_path / "f", "--max-maf", 0.6)
    assert "above 0, up to 0.5" in message


def test_copies_from_a_vcf(tmp_path):
    rows = [
        ("1", 10, "A", "T", [csq("T", *HIGH, "A")], {0: "0/1", 1: "1/1"}),
        ("1", 11, "A", "T", [csq("T", *HIGH, "A")], {0: "0/1", 2: "./1"}),
    ]
    vcf = write_vcf(tmp_path / "v.vcf", rows, people(200))
    preprocess("burden", vcf, "--out", tmp_path / "d", "--code", "copies", "--max-maf", 0.05)
    # Two variants of one copy each are one copy (regenie's max), not two.
    assert unpacked(opened(tmp_path / "d", "burden"))[:4, 0].tolist() == [1, 2, 1, 0]


def test_reruns_give_equal_bytes(tmp_path, capsys):
    vcf = write_vcf(tmp_path / "v.vcf", burden_rows(), [*people(198), "-1", "-2"])
    pgen = write_hard_pgen(tmp_path / "g.pgen", rare_calls(300, 60), people(300))
    (tmp_path / "table").write_text("".join(f"v{number} G lof\n" for number in range(60)))
    plink = ("burden", pgen, "--annotations", tmp_path / "table", "--mask", "lof")
    for command, folder in ((("burden", vcf), "vcf"), (plink, "plink")):
        for name in ("one", "two"):
            preprocess(*command, "--out", tmp_path / folder / name)
        one, two = (all_bytes(tmp_path / folder / name) for name in ("one", "two"))
        assert one == two
        assert not any(b"P001" in content for name, content in one.items() if name.startswith("reports"))
        assert "already exists" in complaint(capsys, *command, "--out", tmp_path / folder / "one")


def test_burden_on_every_class_of_variant(tmp_path):
    samples = [*people(198), "-1", "-2"]
    vcf = write_vcf(tmp_path / "v.vcf", burden_rows(), samples)
    preprocess("burden", vcf, "--out", tmp_path / "d")
    modality = opened(tmp_path / "d", "burden")
    assert modality.participants.tolist() == people(198)
    assert modality.features.groups() == [("chr1", 1), ("chr2", 2), ("chr3", 2)]
    bits = unpacked(modality)
    carriers = {name: np.flatnonzero(bits[:, column]).tolist() for column, name in enumerate(modality.features.name)}
    assert carriers == {"LOF": [0, 1], "MISS": [2, 3], "HOLES": [1, 2], "MULTI": [1, 2], "INDEL": [3]}
    report = json.loads((tmp_path / "d/reports/burden.json").read_text())
    assert report["genes"]["without_counted_variant"] == 3, "MAJOR, COMMON, UNSEEN; NMD has no coding transcript"
    fates = report["alleles"]
    assert (fates["alt_is_major"], fates["too_common"], fates["not_carried"], fates["not_autosomal"]) == (1, 1, 1, 1)
    assert fates["counted"] == 7
    with gzip.open(tmp_path / "d/reports/burden_variants.tsv.gz", "rt") as file:
        text = file.read()
    assert text.count("\tcounted\t") == 7
    assert not any(sample in text for sample in samples[:198])


def rare_vcf(path: Path, calls: np.ndarray, ids: list[str]) -> Path:
    """The calls of :func:`rare_calls` as a VCF, each variant harmful to one of seven genes."""
    words = {-9: "./.", 0: "0/0", 1: "0/1", 2: "1/1"}
    rows = [
        (
            *(str(1 + number % 22), 100 + number, "A", "G", [csq("G", *HIGH, f"G{number % 7}_{1 + number % 22}")]),
            {sample: words[int(call)] for sample, call in enumerate(row)},
        )
        for number, row in enumerate(calls)
    ]
    return write_vcf(path, rows, ids)


def test_a_vcf_and_a_pgen_count_the_same_people(tmp_path):
    """Withdrawn and unlisted people are neither carriers nor part of a frequency."""
    ids = [*(f"-{number}" for number in range(1, 61)), *people(240)]
    calls = rare_calls(300, 154)
    calls[:7, :60] = 2  # carried by withdrawn people alone
    calls[:7, 60:] = 0
    calls[7:14, :60] = 1  # too common with them, rare without
    calls[7:14, 60:] = 0
    calls[7:14, 70] = 1
    vcf = rare_vcf(tmp_path / "v.vcf", calls, ids)
    pgen = write_hard_pgen(tmp_path / "g.pgen", calls, ids)
    sites = write_vcf(tmp_path / "sites.vcf", [(*row, {}) for row in _sites(vcf)], [])
    (tmp_path / "keep").write_text("\n".join(people(240)[5:]) + "\n")
    for name, options in (("all", ()), ("kept", ("--keep", tmp_path / "keep"))):
        preprocess("burden", vcf, "--out", tmp_path / name / "vcf", *options)
        preprocess("burden", pgen, "--annotations", sites, "--out", tmp_path / name / "pgen", *options)
        one, two = (all_bytes(tmp_path / name / kind / "genetics.zarr") for kind in ("vcf", "pgen"))
        assert one == two
        reports = [json.loads((tmp_path / name / kind / "reports/burden.json").read_text()) for kind in ("vcf", "pgen")]
        assert reports[0]["genes"] == reports[1]["genes"]
        assert reports[0]["genes"]["without_counted_variant"] > 0
        bits = unpacked(opened(tmp_path / name / "vcf", "burden"))
        assert bits.any(axis=0).all(), "nobody carries a gene"


def _sites(vcf: Path) -> list[tuple]:
    lines = [line.split("\t") for line in vcf.read_text().splitlines() if line[0] != "#"]
    return [(c, p, r, a, [info.removeprefix("CSQ=")]) for c, p, _, r, a, _, _, info in (line[:8] for line in lines)]


def test_genes_of_a_table_are_counted_whether_or_not_a_variant_counts(tmp_path):
    calls = np.zeros((5, 300), dtype=np.int8)
    calls[0, 3] = 1
    calls[1] = 1
    pgen = write_hard_pgen(tmp_path / "g.pgen", calls, people(300))
    pvar = pgen.with_suffix(".pvar")
    pvar.write_text(pvar.read_text().replace("4\t103", "X\t103"))
    table = tmp_path / "table"
    table.write_text("v0 A lof\nv1 B lof\nv2 A lof\nv2 C silent\nv9 D lof\nv3 E lof\n")
    preprocess("burden", pgen, "--annotations", table, "--mask", "lof", "--out", tmp_path / "d")
    genes = json.loads((tmp_path / "d/reports/burden.json").read_text())["genes"]
    # A on chromosomes 1 (counted) and 3, B and C without a counted variant, D absent; E is not autosomal.
    assert (genes["protein_coding_annotated"], genes["kept"], genes["without_counted_variant"]) == (5, 1, 4)


def test_a_damaged_pgen_is_named(tmp_path, capsys):
    calls = rare_calls(300, 60)
    pgen = write_hard_pgen(tmp_path / "g.pgen", calls, people(300))
    (tmp_path / "table").write_text("".join(f"v{number} G lof\n" for number in range(60)))
    whole = pgen.read_bytes()
    genotypes = open_genotypes(pgen)
    pgen.write_bytes(whole[:-200])
    command = ("burden", pgen, "--annotations", tmp_path / "table", "--mask", "lof", "--out", tmp_path / "d")
    message = complaint(capsys, *command)
    assert "g.pgen: damaged at variant 60" in message
    genotypes.files[0].reader._idle.clear()  # an open reader holds the whole file in its buffer
    with pytest.raises(UserError, match=r"g\.pgen: damaged at variant"):
        genotypes.carriers(np.arange(60), np.zeros(60, bool), 1 << 20)
    with pytest.raises(UserError, match=r"g\.pgen: damaged at variants 1 to 60"):
        genotypes.hard_calls(np.arange(60))


@pytest.mark.parametrize("kind", ["pgen", "bed"])
def test_further_files_hold_the_same_people_once(tmp_path, kind):
    calls, ids = rare_calls(20, 10), people(20)

    def two(second: list[str]) -> Genotypes:
        folder = tmp_path / "raw"
        for number, names in ((1, ids), (2, second)):
            if kind == "pgen":
                folder.mkdir(exist_ok=True)
                write_hard_pgen(folder / f"chr{number}.pgen", calls[:, : len(names)], names)
            else:
                write_bed(folder / f"chr{number}.bed", np.maximum(calls[:, : len(names)], 0).T, names)
        return open_genotypes(folder)

    with pytest.raises(UserError, match=r"chr2\.(psam|fam): has duplicate IDs"):
        two([*ids[:-1], ids[0]])
    with pytest.raises(UserError, match=r"chr2\.(psam|fam): lacks 1 participants .* has 1 others"):
        two([*ids[:-1], "other"])
    # A withdrawn row too few is no other cohort.
    ids.append("-1")
    calls = np.c_[calls, calls[:, :1]]
    genotypes = two([ids[1], ids[0], *ids[2:-1]])
    np.testing.assert_array_equal(genotypes.rows[1][:3], [1, 0, 2])
    both = genotypes.hard_calls(np.array([0, 10]))
    np.testing.assert_array_equal(both[0, [0, 1, 2]], both[1, [1, 0, 2]])


def test_missense_rules():
    either, mean = vep.HarmRule(), vep.HarmRule(combine="mean")
    assert either.is_harmful(0.2, None)
    assert not either.is_harmful(0.21, 0.79)
    assert not either.is_harmful(None, None)
    assert mean.is_harmful(0.0, 0.6)
    assert not mean.is_harmful(0.1, 0.6)
    assert not mean.is_harmful(None, 1.0), "the pipeline's code drops variants with one prediction only"


@pytest.mark.parametrize(
    ("reference", "alternatives", "labels"),
    [
        ("A", ["C", "T"], [["C"], ["T"]]),
        ("AC", ["A"], [["-"]]),
        ("A", ["ACC"], [["CC"]]),
        ("AC", ["A", "AT"], [["-"], ["T"]]),
        ("AC", ["TC"], [["TC", "T"]]),
    ],
)
def test_alleles_are_named_as_vep_does(reference, alternatives, labels):
    for names, wanted in zip(vep.allele_labels(reference, alternatives), labels, strict=True):
        assert set(wanted) <= names


def test_mistakes_in_vcfs_are_named(tmp_path, capsys):
    def complain(path: Path) -> str:
        message = complaint(capsys, "burden", path, "--out", tmp_path / "d")
        assert path.name in message
        return message

    rows = burden_rows()
    assert "run Ensembl VEP" in complain(write_vcf(tmp_path / "plain.vcf", rows, people(200), fields=None))
    assert "lacks IMPACT" in complain(
        write_vcf(tmp_path / "old.vcf", rows, people(200), "Allele|Consequence|Gene|BIOTYPE")
    )
    assert "no samples" in complain(write_vcf(tmp_path / "sites.vcf", [], []))
    assert "no participant carries a harmful variant" in complain(
        write_vcf(tmp_path / "none.vcf", rows[2:4], people(200))
    )
    odd = write_vcf(tmp_path / "odd.vcf", rows, people(200))
    odd.write_text(odd.read_text().replace("0/1", "0/7"))
    assert "a genotype names allele 7" in complain(odd)
    (tmp_path / "junk.vcf").write_text("junk\n")
    assert "cannot be read" in complain(tmp_path / "junk.vcf")
    no_calls = write_vcf(tmp_path / "calls.vcf", rows, people(200))
    no_calls.write_text(no_calls.read_text().replace("\tGT\t", "\tDS\t", 1))
    assert "1:10 has no GT; exclude such records" in complain(no_calls)
    whole = write_vcf(tmp_path / "whole.vcf", rows, people(200)).read_bytes()
    (tmp_path / "cut.vcf").write_bytes(whole[:-100])
    assert f"line {len(whole.splitlines())} is damaged" in complain(tmp_path / "cut.vcf")
