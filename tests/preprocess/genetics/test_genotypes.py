"""Genotypes from every format against independent readers, and the pitfalls of docs/genetics-pitfalls.md one by one.

The independent readers are the bytes of the .bed specification read by hand, and the ``bgen`` package; the other
formats are made from the .bed by plink2. Every trap has a test that states the right numbers.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bgen import BgenReader

from mrmfast.errors import UserError
from preprocess.genetics.genotypes import Genotypes, reader, twobit
from preprocess.genetics.genotypes.base import hard_calls_of
from preprocess.genetics.genotypes.bgen import probabilities
from preprocess.genetics.genotypes.reference import orient
from preprocess.genetics.genotypes.vcf import VcfFile
from tests.preprocess.genetics.test_snps import (
    DATA,
    all_bytes,
    complaint,
    needs_data,
    needs_plink2,
    opened,
    people,
    preprocess,
    random_calls,
    read_bed_by_hand,
    unpacked,
    write_bed,
)

FOLDER = DATA / "genetics/hapmap3"
COHORTS = {
    "hapmap3": FOLDER / "HM3_thinned_autosomal_overlap.bed",
    "1000g": FOLDER / "1kg.ref.phase1_release_v3.20101123_thinned_autosomal_overlap.bed",
}
# Name -> (what plink2 exports, the file's ending, --reference).
EXPORTS = {
    "pgen": (["--make-pgen"], ".pgen", "ref"),
    "vcf": (["--export", "vcf", "bgz", "id-paste=iid"], ".vcf.gz", "ref"),
    "bcf": (["--export", "bcf", "id-paste=iid"], ".bcf", "ref"),
    "bgen-ref-first": (["--export", "bgen-1.2", "ref-first", "bits=8"], ".bgen", "ref-first"),
    "bgen-ref-last": (["--export", "bgen-1.3", "bits=16"], ".bgen", "ref-last"),
    "bgen-1.1": (["--export", "bgen-1.1"], ".bgen", "ref-last"),
}


@dataclass(frozen=True)
class Opened(Genotypes):
    """A cohort as ``snps`` sees it, with what the reference decided beside it."""

    excluded: pd.DataFrame = field(default_factory=pd.DataFrame)


def open_genotypes(path: Path, reference: str | None = None, fasta: Path | None = None, **options: object) -> Opened:
    """Open a cohort and orient it to the reference."""
    oriented = orient(reader.open_genotypes(path, **options), reference, fasta)
    chosen = oriented.genotypes
    counts = chosen.counts | oriented.counts
    return Opened(chosen.files, chosen.samples, chosen.rows, chosen.variants, counts, oriented.excluded)


def plink2(*arguments: object) -> None:
    subprocess.run(["plink2", *map(str, arguments), "--silent"], check=True, capture_output=True)


def everything(genotypes: Genotypes) -> np.ndarray:
    """Copies of the non-reference allele as store codes, participants x variants."""
    calls = genotypes.hard_calls(np.arange(len(genotypes.variants)))
    return np.where(calls < 0, 3, calls).T


def swapped_bed(source: Path, target: Path) -> Path:
    """Write the same cohort with A1 and A2 exchanged and counts complemented: no participant's genotype changes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [line.split() for line in source.with_suffix(".bim").read_text().splitlines()]
    lines = [[*fields[:4], fields[5], fields[4]] for fields in lines]
    target.with_suffix(".bim").write_text("".join("\t".join(fields) + "\n" for fields in lines))
    shutil.copy(source.with_suffix(".fam"), target.with_suffix(".fam"))
    raw = source.read_bytes()
    pairs = np.frombuffer(raw[3:], np.uint8)
    exchange = np.array([3, 1, 2, 0], np.uint8)  # 00 <-> 11; missing (01) and heterozygous (10) stay
    spread = exchange[np.stack([pairs >> shift & 3 for shift in (0, 2, 4, 6)])]
    target.write_bytes(raw[:3] + (spread[0] | spread[1] << 2 | spread[2] << 4 | spread[3] << 6).tobytes())
    return target


def part_of(source: Path, target: Path, chromosomes: tuple[str, ...] = ("21", "22")) -> Path:
    """Copy some chromosomes of a file set: a genome of all would be 3 GB."""
    samples = len(source.with_suffix(".fam").read_text().splitlines())
    lines = source.with_suffix(".bim").read_text().splitlines(keepends=True)
    kept = [number for number, line in enumerate(lines) if line.split()[0] in chromosomes]
    raw = source.read_bytes()
    rows = np.frombuffer(raw[3:], np.uint8).reshape(len(lines), -(-samples // 4))
    target.write_bytes(raw[:3] + rows[kept].tobytes())
    target.with_suffix(".bim").write_text("".join(lines[number] for number in kept))
    shutil.copy(source.with_suffix(".fam"), target.with_suffix(".fam"))
    return target


def fasta_of(bim: Path, path: Path, reference: list[str] | None = None) -> Path:
    """Write a genome that has a .bim's A2 (or `reference`) at its positions, N elsewhere."""
    rows = [line.split() for line in bim.read_text().splitlines()]
    alleles = reference or [fields[5] for fields in rows]
    with open(path, "w") as file:
        for chromosome in sorted({fields[0] for fields in rows}, key=int):
            places = [
                (int(fields[3]), allele)
                for fields, allele in zip(rows, alleles, strict=True)
                if fields[0] == chromosome
            ]
            sequence = np.full(max(place for place, _ in places) + 10, ord("N"), np.uint8)
            for place, allele in places:
                sequence[place - 1 : place - 1 + len(allele)] = np.frombuffer(allele.lower().encode(), np.uint8)
            file.write(f">chr{chromosome}\n")
            for start in range(0, len(sequence), 60_000):
                file.write(sequence[start : start + 60_000].tobytes().decode() + "\n")
    return path


# --- the two-bit words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variants", "samples"), [(1, 1), (4, 4), (7, 9), (16, 37), (33, 64), (130, 257)])
def test_two_bit_words_equal_plain_loops(variants, samples):
    rng = np.random.default_rng(variants)
    raw = rng.integers(0, 256, (variants, twobit.width(samples)), dtype=np.uint8)
    flip = rng.random(variants) < 0.5
    codes = twobit.from_plink1(raw, flip)
    plain = np.empty((variants, samples), np.uint8)
    for variant in range(variants):
        for sample in range(samples):
            pair = raw[variant, sample // 4] >> 2 * (sample % 4) & 3
            plain[variant, sample] = {0: 2, 1: 3, 2: 1, 3: 0}[int(pair)] if flip[variant] else [0, 3, 1, 2][pair]
    np.testing.assert_array_equal(twobit.unpack(codes, samples), plain)
    copies = np.where(plain == 3, -7, plain).astype(np.int8)
    packed = twobit.pack(copies)
    np.testing.assert_array_equal(twobit.unpack(packed, samples), plain)
    rows = np.empty((samples, twobit.width(variants)), np.uint8)
    twobit.transpose(packed, rows)
    np.testing.assert_array_equal(rows, twobit.pack(copies.T))
    chosen = rng.random(samples) < 0.7
    expected = [[int((line[chosen] == code).sum()) for code in range(4)] for line in plain]
    np.testing.assert_array_equal(twobit.count(packed, twobit.mask(chosen)), expected)
    for order in (np.flatnonzero(chosen), rng.permutation(samples), np.arange(samples // 4 * 4, samples)):
        if len(order):
            np.testing.assert_array_equal(twobit.select(codes, order), twobit.pack(copies[:, order]))


# --- parity -------------------------------------------------------------------------------------------------------


@needs_data
@needs_plink2
@pytest.mark.parametrize("cohort", COHORTS)
def test_all_formats_and_swapped_alleles_equal_the_bytes_of_the_bed(tmp_path, cohort):
    source = COHORTS[cohort]
    expected = read_bed_by_hand(source)
    bim = [line.split() for line in source.with_suffix(".bim").read_text().splitlines()]
    assert expected.shape == {"hapmap3": (957, 14_079), "1000g": (1_092, 14_079)}[cohort]
    opened_as = {
        "bed": open_genotypes(source, reference="a2"),
        "swapped": open_genotypes(swapped_bed(source, tmp_path / "swapped.bed"), reference="a1"),
    }
    for name, (export, suffix, reference) in EXPORTS.items():
        plink2("--bfile", source.with_suffix(""), *export, "--out", tmp_path / name)
        file = tmp_path / f"{name}{suffix}"
        opened_as[name] = open_genotypes(file, reference=reference)
        if suffix != ".pgen":
            opened_as[f"{name}, converted"] = open_genotypes(file, reference=reference, cache=tmp_path / "cache")
    for name, genotypes in opened_as.items():
        np.testing.assert_array_equal(everything(genotypes), expected, name)
        assert genotypes.samples.tolist() == opened_as["bed"].samples.tolist(), name
        table = genotypes.variants
        assert table["id"].tolist() == [fields[1] for fields in bim], name
        assert table["position"].tolist() == [int(fields[3]) for fields in bim], name
        assert table["ref"].tolist() == [fields[5] for fields in bim], name
        assert table["alt"].tolist() == [fields[4] for fields in bim], name


@needs_data
@needs_plink2
def test_stores_of_all_formats_are_the_same_rows(tmp_path):
    source = COHORTS["hapmap3"]
    commands = {"bed": (source, "a2"), "swapped": (swapped_bed(source, tmp_path / "swapped.bed"), "a1")}
    for name in ("pgen", "vcf", "bgen-ref-first", "bgen-ref-last"):
        export, suffix, reference = EXPORTS[name]
        plink2("--bfile", source.with_suffix(""), *export, "--out", tmp_path / name)
        commands[name] = (tmp_path / f"{name}{suffix}", reference)
    stores = {}
    for name, (file, reference) in commands.items():
        out = tmp_path / "out" / name
        preprocess("snps", file, "--out", out, "--reference", reference, "--stride", 10, "--memory", 128)
        modality = opened(out, "snps")
        stores[name] = (unpacked(modality), modality.features, modality.participants.tolist())
        assert sorted(path.name for path in out.iterdir()) == [
            *(".dataset.lock", ".snps.lock", "dataset.json", "genetics.zarr", "reports")
        ], "nothing is left behind"
    rows, features, participants = stores["bed"]
    for name, (other, table, ids) in stores.items():
        np.testing.assert_array_equal(other, rows, name)
        assert ids == participants
        for column in ("name", "chromosome", "position", "reference", "alternative", "fill"):
            assert getattr(table, column).tolist() == getattr(features, column).tolist(), (name, column)


@needs_data
@needs_plink2
def test_bgen_equals_vcf_and_an_independent_reader(tmp_path):
    """The 1000 Genomes sample: ``tiny1000G.bgen`` is the phased one, ``tiny1000G_phased.bgen`` is not."""
    folder = DATA / "genetics/geno"
    vcf = open_genotypes(folder / "tiny1000G.vcf.gz")
    shutil.copy(folder / "tiny1000G_phased.bgen", tmp_path / "phased.bgen")
    shutil.copy(folder / "tiny1000G.sample", tmp_path / "phased.sample")
    assert vcf.counts["variants_not_autosomal"] == 36
    for path, is_phased in ((folder / "tiny1000G.bgen", True), (tmp_path / "phased.bgen", False)):
        with BgenReader(str(path), delay_parsing=True) as reader:
            assert next(iter(reader)).is_phased is is_phased
        genotypes = open_genotypes(path, reference="ref-last")
        np.testing.assert_array_equal(everything(genotypes), everything(vcf))
        assert genotypes.variants["ref"].tolist() == vcf.variants["ref"].tolist()
        assert genotypes.samples.tolist() == vcf.samples.tolist()
    missing = open_genotypes(folder / "missing.bgen", reference="ref-first")
    dosages = missing.dosages(np.arange(len(missing.variants)))
    assert np.isnan(dosages).mean() == pytest.approx(0.3, abs=0.001)
    with BgenReader(str(folder / "missing.bgen"), delay_parsing=True) as reader:
        of = {variant.rsid: variant for variant in reader}
        for row in range(0, len(dosages), 97):
            theirs = of[missing.variants["id"][row]].probabilities
            np.testing.assert_allclose(dosages[row], theirs[:, 1] + 2 * theirs[:, 2], atol=1e-6)


# --- pitfalls: docs/genetics-pitfalls.md ---------------------------------------------------------------------------


def vcf_of(path: Path, rows: list[tuple], samples: list[str], extra: str = "") -> Path:
    """Write rows (chromosome, position, id, REF, ALT, FORMAT, calls)."""
    contigs = "".join(f"##contig=<ID={name}>\n" for name in dict.fromkeys(row[0] for row in rows))
    header = f'##fileformat=VCFv4.2\n{contigs}##FORMAT=<ID=GT,Number=1,Type=String,Description="G">\n{extra}'
    columns = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", *(["FORMAT"] if samples else [])]
    lines = ["\t".join([*columns, *samples])]
    for chromosome, position, name, ref, alt, fields, calls in rows:
        lines.append("\t".join([chromosome, str(position), name, ref, alt, ".", ".", ".", fields, *calls]))
    path.write_text(header + "\n".join(lines) + "\n")
    return path


def test_trap_1_the_fasta_decides_and_mismatches_are_excluded_and_counted(tmp_path):
    calls = random_calls(9, 6)
    # 0: A2 is the reference; 1: A1 is; 2: neither; 3: a deletion where both alleles agree with the genome, the longer
    # one counts; 4: other case; 5: A1 unknown.
    columns = {"allele_1": [*list("GTCA"), "g", "0"], "allele_2": [*list("ACA"), "AT", "c", "G"]}
    bed = write_bed(tmp_path / "x.bed", calls, people(9), **columns)
    genome = fasta_of(bed.with_suffix(".bim"), tmp_path / "g.fa", ["A", "T", "G", "AT", "C", "G"])
    genotypes = open_genotypes(bed, fasta=genome)
    assert genotypes.variants["ref"].tolist() == ["A", "T", "AT", "C", "G"]
    assert genotypes.variants["swapped"].tolist() == [False, True, False, False, False]
    assert genotypes.excluded["fate"].tolist() == ["reference_mismatch"]
    assert (genotypes.counts["variants_swapped"], genotypes.counts["variants_reference_mismatch"]) == (1, 1)
    expected = np.where(calls < 0, 3, calls)
    expected[:, 1] = np.where(calls[:, 1] < 0, 3, 2 - calls[:, 1])
    np.testing.assert_array_equal(everything(genotypes), expected[:, [0, 1, 3, 4, 5]])
    preprocess("snps", bed, "--fasta", genome, "--stride", 2, "--out", tmp_path / "d", "--test-fraction", 0)
    modality = opened(tmp_path / "d", "snps")
    assert modality.features.name.tolist() == ["rs1", "rs5"], "a mismatch must not shift the stride"
    np.testing.assert_array_equal(unpacked(modality), expected[:, [0, 4]])


@needs_data
def test_trap_1_a_fasta_gives_one_store_whichever_allele_is_a1(tmp_path):
    source = part_of(COHORTS["1000g"], tmp_path / "kg.bed")
    genome = fasta_of(source.with_suffix(".bim"), tmp_path / "b37.fa")
    straight = open_genotypes(source, fasta=genome)
    turned = open_genotypes(swapped_bed(source, tmp_path / "s.bed"), fasta=genome)
    np.testing.assert_array_equal(everything(straight), everything(turned))
    np.testing.assert_array_equal(everything(straight), read_bed_by_hand(source))
    assert (straight.counts["variants_swapped"], turned.counts["variants_swapped"]) == (0, len(turned.variants))


@needs_data
def test_another_build_is_noticed(tmp_path, capsys):
    """HapMap3 stands in build 36, 1000 Genomes in 37: rsIDs agree, positions do not."""
    new, old = (part_of(COHORTS[name], tmp_path / f"{name}.bed") for name in ("1000g", "hapmap3"))
    genome = fasta_of(new.with_suffix(".bim"), tmp_path / "b37.fa")
    old = ("snps", old, "--out", tmp_path / "d")
    message = complaint(capsys, *old, "--fasta", genome)
    assert "another build" in message
    bim = [line.split() for line in new.with_suffix(".bim").read_text().splitlines()]
    names = tmp_path / "list"
    names.write_text("".join(f"{fields[1]} {fields[0]} {fields[3]}\n" for fields in bim[::50]))
    assert "another build" in complaint(capsys, *old, "--reference", "a2", "--variants", names)
    names.write_text("".join(f"{fields[1]}\n" for fields in bim[::50]) + "rs_nowhere\n")
    preprocess(*old, "--reference", "a2", "--variants", names)
    assert opened(tmp_path / "d", "snps").features.name.tolist() == [fields[1] for fields in bim[::50]]
    assert json.loads((tmp_path / "d/reports/snps.json").read_text())["variants"]["listed_absent"] == 1


@needs_plink2
def test_trap_2_missing_is_never_a_number(tmp_path):
    calls = random_calls(11, 40)
    bed = write_bed(tmp_path / "x.bed", calls, people(11))
    plink2("--bfile", tmp_path / "x", "--make-pgen", "--out", tmp_path / "x")
    plink2("--bfile", tmp_path / "x", "--export", "vcf", "id-paste=iid", "--out", tmp_path / "x")
    plink2("--bfile", tmp_path / "x", "--export", "bgen-1.2", "ref-first", "--out", tmp_path / "y")
    expected = np.where(calls < 0, -1, calls).T
    for name, reference in (("x.bed", "a2"), ("x.pgen", "ref"), ("x.vcf", None), ("y.bgen", "ref-first")):
        genotypes = open_genotypes(tmp_path / name, reference=reference)
        every = np.arange(40)
        np.testing.assert_array_equal(genotypes.hard_calls(every), expected, name)
        dosages = genotypes.dosages(every)
        np.testing.assert_array_equal(np.isnan(dosages), expected < 0, name)
        assert np.nanmin(dosages) >= 0, name
        np.testing.assert_allclose(np.nansum(dosages), expected[expected > 0].sum(), rtol=1e-6)
    flipped = open_genotypes(bed, reference="a1").hard_calls(np.arange(40))
    np.testing.assert_array_equal(flipped, np.where(expected < 0, -1, 2 - expected))


def bgen_bytes(
    rows: list[tuple[str, str, int, list[str], np.ndarray]],
    samples: int,
    bits: int = 8,
    phased: bool = False,
    ploidy: list[int] | None = None,
) -> bytes:
    """Write BGEN 1.2 without compression by the specification; rows are (chromosome, rsid, position, alleles, p)."""

    def text(value: str, width: str = "<H") -> bytes:
        return struct.pack(width, len(value)) + value.encode()

    out = struct.pack("<5I", 20, 20, len(rows), samples, 0x6E656762) + struct.pack("<I", 2 << 2)
    for chromosome, rsid, position, alleles, values in rows:
        out += text("") + text(rsid) + text(chromosome) + struct.pack("<IH", position, len(alleles))
        out += b"".join(text(allele, "<I") for allele in alleles)
        steps = np.round(np.nan_to_num(values) * (2**bits - 1)).astype(np.uint64)
        packed = np.packbits(
            (steps.reshape(-1, 1) >> np.arange(bits, dtype=np.uint64) & 1).astype(np.uint8), bitorder="little"
        )
        state = ploidy or np.where(np.isnan(values[:, 0]), 0x82, 2).tolist()
        data = struct.pack("<IHBB", samples, len(alleles), min(ploidy or [2]), max(ploidy or [2])) + bytes(state)
        data += bytes([phased, bits]) + packed.tobytes()
        out += struct.pack("<I", len(data)) + data
    return out


def write_bgen(path: Path, rows: list, ids: list[str], **options: object) -> Path:
    path.write_bytes(bgen_bytes(rows, len(ids), **options))
    path.with_suffix(".sample").write_text("ID_1 ID_2 missing\n0 0 0\n" + "".join(f"f {one} 0\n" for one in ids))
    return path


def test_trap_3_bgen_order_must_be_said_and_turns_the_dosage(tmp_path, capsys):
    values = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.5, 0.25], [np.nan, 0.0]])
    path = write_bgen(tmp_path / "x.bgen", [("01", "rs1", 5, ["A", "G"], values)], people(5), bits=16)
    assert "ref-first" in complaint(capsys, "snps", path, "--out", tmp_path / "d")
    first, last = (open_genotypes(path, reference=f"ref-{word}") for word in ("first", "last"))
    assert first.variants[["ref", "alt"]].iloc[0].tolist() == ["A", "G"]
    assert last.variants[["ref", "alt"]].iloc[0].tolist() == ["G", "A"]
    one = np.arange(1)
    np.testing.assert_allclose(first.dosages(one)[0], [0, 1, 2, 0.75, np.nan], atol=1e-4)
    np.testing.assert_allclose(last.dosages(one)[0], [2, 1, 0, 1.25, np.nan], atol=1e-4)
    assert first.hard_calls(one)[0].tolist() == [0, 1, 2, -1, -1]
    assert "for .bgen" in complaint(capsys, "snps", path, "--reference", "a2", "--out", tmp_path / "d")


@needs_plink2
def test_other_ploidies_in_bgen_read_as_plink2_reads_them(tmp_path):
    values = np.array([1.0, 0.0, 0.0, 1.0, 0.4, 0.2])  # diploid, two haploid, diploid
    path = write_bgen(tmp_path / "x.bgen", [("1", "rs1", 5, ["A", "G"], values)], people(4), ploidy=[2, 1, 1, 2])
    plain, converted = (
        open_genotypes(path, reference="ref-first", cache=cache) for cache in (None, tmp_path / "cache")
    )
    assert type(plain.files[0]) is not type(converted.files[0])
    for genotypes in (plain, converted):
        np.testing.assert_allclose(genotypes.dosages(np.arange(1))[0], [0, 2, 0, 1.0], atol=1e-2)
    path = write_bgen(tmp_path / "y.bgen", [("1", "rs1", 5, ["A", "G"], values)], people(3), ploidy=[2, 3, 1])
    genotypes = open_genotypes(path, reference="ref-first")
    np.testing.assert_allclose(genotypes.dosages(np.arange(1))[0], [0, np.nan, 1.6], atol=1e-2)


@pytest.mark.parametrize("bits", [1, 3, 8, 11, 16, 24, 32])
def test_probabilities_of_any_width(bits):
    top = 2**bits - 1
    steps = np.random.default_rng(bits).integers(0, top + 1, 14, dtype=np.uint64)
    stream = sum(int(step) << bits * place for place, step in enumerate(steps))
    values = probabilities(stream.to_bytes(-(-14 * bits // 8), "little"), bits, 14)
    np.testing.assert_allclose(values, steps / top, atol=1e-12)


def test_trap_4_dosages_are_not_hard_calls(tmp_path):
    """A sixth of the calls is unsure: missing as a call, known as a dosage."""
    extra = '##FORMAT=<ID=DS,Number=1,Type=Float,Description="D">\n'
    rows = [("1", 10, "rs1", "A", "G", "GT:DS", ["0/1:0.85", "./.:1.4", "1/1:2", "./.:.", "0/0:0.1", "0/1:1"])]
    genotypes = open_genotypes(vcf_of(tmp_path / "x.vcf", rows, people(6), extra))
    np.testing.assert_allclose(genotypes.dosages(np.arange(1))[0], [0.85, 1.4, 2, np.nan, 0.1, 1], atol=0.5 / 16384)
    assert genotypes.hard_calls(np.arange(1))[0].tolist() == [1, -1, 2, -1, 0, 1]
    np.testing.assert_array_equal(
        hard_calls_of(np.array([[0, 0.0999, 0.11, 0.89, 0.9001, 1.5, 1.95, 2, np.nan]])),
        [[0, 0, -1, -1, 1, -1, 2, 2, -1]],
    )


def test_trap_8_only_autosomes_with_or_without_chr(tmp_path):
    labels = ["1", "chr2", "CHR22", "01", "23", "X", "chrX", "MT", "26", "PAR1", "XY", "0", "chr0", "Y", "chr1_alt"]
    rows = [(label, 10 + n, f"rs{n}", "A", "G", "GT", ["0/1"] * 3) for n, label in enumerate(labels)]
    genotypes = open_genotypes(vcf_of(tmp_path / "x.vcf", rows, people(3)))
    assert genotypes.variants["id"].tolist() == ["rs0", "rs3", "rs1", "rs2"]
    assert genotypes.variants["chromosome"].tolist() == [1, 1, 2, 22]
    assert genotypes.counts["variants_not_autosomal"] == 11
    bed = write_bed(tmp_path / "x.bed", random_calls(3, len(labels)), people(3), chromosome=labels)
    assert open_genotypes(bed, reference="a2").variants["id"].tolist() == ["rs1", "rs4", "rs2", "rs3"]


@needs_plink2
def test_trap_9_withdrawn_participants_keep_their_row_and_leave_the_store(tmp_path):
    ids, calls = ["A", "-1", "B", "-2", "C"], random_calls(5, 12)
    bed = write_bed(tmp_path / "x.bed", calls, ids)
    plink2("--bfile", tmp_path / "x", "--make-pgen", "--out", tmp_path / "x")
    expected = np.where(calls < 0, 3, calls)[[0, 2, 4]]
    for source, reference in ((bed, "a2"), (tmp_path / "x.pgen", "ref")):
        genotypes = open_genotypes(source, reference=reference)
        assert genotypes.samples.tolist() == ["A", "B", "C"]
        assert genotypes.counts["withdrawn"] == 2
        np.testing.assert_array_equal(everything(genotypes), expected)
        out = tmp_path / f"out{source.suffix}"
        preprocess("snps", source, "--reference", reference, "--stride", 1, "--out", out, "--test-fraction", 0)
        np.testing.assert_array_equal(unpacked(opened(out, "snps")), expected)


@pytest.mark.parametrize("convert", [False, pytest.param(True, marks=needs_plink2)])
def test_trap_10_multi_allelic_sites_and_odd_calls(tmp_path, convert):
    rows = [
        ("1", 10, "rs1", "A", "G", "GT", ["0/1", "./1", "1", ".", "1|1", "0/1/1"]),
        ("1", 20, "rs2", "A", "G,T", "GT", ["0/1", "1/2", "0/2", "./.", "2/2", "0/0"]),
        ("1", 30, "rs3", "A", ".", "GT", ["0/0", "0/0", "0/0", "./.", "0/0", "0/0"]),
        ("1", 40, "rs1", "c", "t", "GT", ["0|0", "1|0", "0|1", ".|.", "1|1", "0|0"]),
    ]
    source = vcf_of(tmp_path / "x.vcf", rows, people(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither a fall-back nor another complaint
        genotypes = open_genotypes(source, cache=tmp_path / "cache" if convert else None)
    assert genotypes.excluded["id"].tolist() == ["rs2", "rs3"]
    assert set(genotypes.excluded["fate"]) == {"multi_allelic"}
    assert genotypes.hard_calls(np.arange(2)).tolist() == [[1, -1, 2, -1, 2, -1], [0, 1, 1, -1, 2, 0]]
    assert genotypes.variants[["ref", "alt"]].to_numpy().tolist() == [["A", "G"], ["C", "T"]]
    out = tmp_path / "d"
    preprocess("snps", source, "--stride", 1, "--out", out, "--test-fraction", 0)
    modality = opened(out, "snps")
    assert modality.features.name.tolist() == ["rs1"], "of one id the first counts"
    assert json.loads((out / "reports/snps.json").read_text())["variants"]["duplicate_id"] == 1


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_mistakes_in_bgen_are_named(tmp_path, capsys):
    values = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    rows = [("1", f"rs{n}", 5 + n, ["A", "G"], values) for n in range(4)]
    good = bgen_bytes(rows, 3)

    def complain(content: bytes, ids: list[str] | None = None) -> str:
        path = write_bgen(tmp_path / "x.bgen", rows, ids or people(3))
        path.write_bytes(content)
        message = complaint(
            capsys,
            "snps",
            path,
            "--reference",
            "ref-first",
            "--out",
            tmp_path / "d",
            "--stride",
            1,
            "--test-fraction",
            0,
        )
        assert "x.bgen" in message or "x.sample" in message
        return message

    assert "not a BGEN" in complain(b"junk" * 20)
    assert "truncated" in complain(good[:-3])
    assert "truncated" in complain(good[:60])
    assert "has bytes behind" in complain(good + b"\0")
    assert "names 2 samples" in complain(good, people(2))
    zipped = bytearray(good)
    zipped[20] |= 1  # says zlib, is not
    assert "variant 1 cannot be decoded" in complain(bytes(zipped))
    (tmp_path / "x.sample").write_text("ID_1 ID_2 missing\n0 0 0\nf P000 0\nf P001\n")
    (tmp_path / "x.bgen").write_bytes(good)
    message = complaint(capsys, "snps", tmp_path / "x.bgen", "--reference", "ref-first", "--out", tmp_path / "d")
    assert "x.sample: line 4 has 2 columns" in message
    (tmp_path / "x.sample").unlink()
    assert "names no samples" in complaint(
        capsys, "snps", tmp_path / "x.bgen", "--reference", "ref-first", "--out", tmp_path / "d"
    )
    assert zlib.crc32(good), "the good file stays good"


@needs_plink2
def test_mistakes_in_pgen_are_named(tmp_path, capsys):
    write_bed(tmp_path / "x.bed", random_calls(9, 30), people(9))

    def complain(change) -> str:
        plink2("--bfile", tmp_path / "x", "--make-pgen", "--out", tmp_path / "y")
        change()
        return complaint(
            capsys, "snps", tmp_path / "y.pgen", "--reference", "ref", "--out", tmp_path / "d", "--test-fraction", 0
        )

    pgen, pvar, psam = (tmp_path / f"y{suffix}" for suffix in (".pgen", ".pvar", ".psam"))

    def edit(path: Path, old: str, new: str) -> None:
        path.write_text(path.read_text().replace(old, new))

    assert "y.psam: does not exist" in complain(psam.unlink)
    assert "y.pvar: line 3: the position" in complain(lambda: edit(pvar, "1010", "x"))
    assert "y.pvar: line 4 has 4 columns" in complain(lambda: edit(pvar, "\trs3", ""))
    assert "no column ALT" in complain(lambda: edit(pvar, "ALT", "OLT"))
    assert "y.pgen" in complain(lambda: psam.write_text("".join(psam.read_text().splitlines(True)[:-1])))
    assert "y.pgen: is not a .pgen" in complain(lambda: pgen.write_bytes(b"junk"))
    assert "y.pgen" in complain(lambda: pgen.write_bytes(pgen.read_bytes()[:-20]))


def test_mistakes_in_vcfs_are_named(tmp_path, capsys):
    rows = [("1", 10 + n, f"rs{n}", "A", "G", "GT", ["0/1"] * 3) for n in range(5)]

    def complain(path: Path, *more: object) -> str:
        return complaint(capsys, "snps", path, "--out", tmp_path / "d", "--stride", 1, "--test-fraction", 0, *more)

    assert "no samples" in complain(vcf_of(tmp_path / "sites.vcf", [], []))
    assert "no variants" in complain(vcf_of(tmp_path / "empty.vcf", [], people(3)))
    bad = vcf_of(tmp_path / "bad.vcf", rows, people(3))
    whole = bad.read_text()
    bad.write_text(whole.replace("\t12\t", "\tx\t"))
    assert f"bad.vcf: line {len(whole.splitlines()) - 2} is damaged" in complain(bad)
    bad.write_text(whole.replace("\trs3\tA\tG\t.\t.\t.\tGT\t0/1", "\trs3\tA\tG\t.\t.\t.\tGT\t0/5"))
    with pytest.warns(UserWarning, match="read in Python"):
        assert "1:13: a genotype names allele 5" in complain(bad)
    bad.write_text(whole.replace("GT\t0/1", "DS\t1", 1))
    with pytest.raises(UserError, match=r"bad\.vcf: 1:10 has no GT"):
        VcfFile(bad).hard_calls(np.arange(5))
    assert "for .vcf files give ref or alt" in complain(
        vcf_of(tmp_path / "r.vcf", rows, people(3)), "--reference", "a1"
    )
    (tmp_path / "two").mkdir()
    vcf_of(tmp_path / "two/a.vcf", rows, people(3))
    write_bed(tmp_path / "two/b.bed", random_calls(3, 3), people(3))
    assert ".bed and .vcf files" in complain(tmp_path / "two")
    assert "is no genotype file" in complain(tmp_path / "two/b.bim")


# --- scale --------------------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_workers_memory_or_the_cluster(tmp_path):
    calls = random_calls(700, 150)
    bed = write_bed(tmp_path / "x.bed", calls, people(700))
    common = ("snps", bed, "--reference", "a2", "--stride", 1)
    options = {"one": ("--workers", 1), "three": ("--workers", 3, "--memory", 192), "small": ("--memory", 128)}
    for name, more in options.items():
        preprocess(*common, *more, "--out", tmp_path / name)
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "three") == all_bytes(tmp_path / "small")
    np.testing.assert_array_equal(unpacked(opened(tmp_path / "one", "snps")), np.where(calls < 0, 3, calls))


@needs_data
def test_both_readers_of_a_bim_agree(monkeypatch):
    from preprocess.genetics.genotypes import plink1

    for path in sorted((DATA / "genetics").rglob("*.bim")):
        quick = plink1._read_bim_quickly(path)
        with monkeypatch.context() as patch:
            patch.setattr(plink1, "_read_bim_quickly", lambda *_: None)
            slow = plink1.read_bim(path)
        assert quick.equals(slow), path.name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 a 0 5 A G\n1 b 0 6 A\n", "line 2 has 5 columns"),
        ("1 a 0 5 A G x\n1 b 0 6 A G x\n", "line 1 has 7 columns"),
        ("1 a 0 5 A G x y\n", "line 1 has 8 columns"),
        ("1 a 0 5 A G\n\n1 b 0 6 A G\n", "line 2 has 0 columns"),
        ("1 a 0 5.5 A G\n", "line 1: the position"),
        ("1 a 0 99999999999999999999999 A G\n", "line 1: the position"),
        ("1 a 0 5 A G\n1 b 0 -6 A G\n", "line 2: the position"),
        ("1 a 0 3000000000 A G\n", "line 1: the position"),
        ("", "is empty"),
    ],
)
def test_mistakes_in_a_bim_are_named(tmp_path, text, words):
    from preprocess.genetics.genotypes.plink1 import read_bim

    (tmp_path / "x.bim").write_text(text)
    with pytest.raises(UserError, match=words):
        read_bim(tmp_path / "x.bim")
