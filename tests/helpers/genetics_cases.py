"""Handmade genotypes, scoring files and VCFs, and how to run a command and read what it wrote."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from bed_reader import to_bed

from mrmfast.data.genetics.store import GenomeStore, Modality
from mrmfast.formats.manifest import SplitRule
from preprocess.__main__ import main

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) is not here")
needs_plink2 = pytest.mark.skipif(shutil.which("plink2") is None, reason="plink2 is not installed")
RULE = SplitRule()


def preprocess(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail for a reason the user can fix; return its one line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("mrmfast: error: ")]
    assert len(lines) == 1
    assert text.endswith(lines[0] + "\n")
    return lines[0]


def opened(dataset: Path, name: str) -> Modality:
    return GenomeStore.open(str(dataset), [name]).modalities[0]


def unpacked(modality: Modality) -> np.ndarray:
    """Undo the packing bit by bit."""
    if modality.encoding == "float":
        return modality.rows
    if modality.encoding == "binary":
        return np.unpackbits(modality.rows, axis=1, bitorder="little")[:, : len(modality.features)]
    codes = np.stack([modality.rows >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    return codes.reshape(len(codes), -1)[:, : len(modality.features)]


def read_bed_by_hand(path: Path) -> np.ndarray:
    """Copies of A1, 3 for missing, from the bytes of the PLINK 1 format: shape (samples, variants)."""
    samples = len(path.with_suffix(".fam").read_text().splitlines())
    raw = np.frombuffer(path.read_bytes()[3:], dtype=np.uint8).reshape(-1, -(-samples // 4))
    pairs = np.stack([raw >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1).reshape(len(raw), -1)[:, :samples]
    return np.array([2, 3, 1, 0], dtype=np.uint8)[pairs].T


def write_bed(path: Path, calls: np.ndarray, ids: list[str], **columns: list) -> Path:
    """Write calls (copies of A1, -127 missing) and properties of variants."""
    count = calls.shape[1]
    properties = {
        "fid": ids,
        "iid": ids,
        "chromosome": ["1"] * count,
        "sid": [f"rs{number + 1}" for number in range(count)],
        "bp_position": [1000 + 10 * number for number in range(count)],
        "allele_1": ["G"] * count,
        "allele_2": ["A"] * count,
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    to_bed(path, calls.astype(np.int8), properties=properties)
    return path


def random_calls(people: int, variants: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    calls = rng.binomial(2, rng.uniform(0.1, 0.9, variants), (people, variants)).astype(np.int8)
    calls[rng.random(calls.shape) < 0.1] = -127
    return calls


def people(count: int) -> list[str]:
    return [f"P{number:03d}" for number in range(count)]


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def scoring_file(path: Path, columns: str, rows: list[str], **header: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "###PGS CATALOG SCORING FILE",
        "#format_version=2.0",
        *(f"#{key}={value}" for key, value in header.items()),
    ]
    text = "\n".join([*lines, columns, *rows]).replace(" ", "\t") + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text)
    return path


def cohort_and_scores(tmp_path: Path) -> tuple[Path, Path, np.ndarray, list[dict[int, tuple[str, float]]]]:
    """Eight variants, six scores, and for each score what a reader would do by hand: variant -> (allele, weight)."""
    calls = random_calls(40, 8)
    alleles = {"allele_1": list("GTAACGTC"), "allele_2": list("ACTGTAGG")}  # 2 (A/T) and 7 (C/G) are ambiguous
    bed = write_bed(tmp_path / "raw/all.bed", calls, people(40), **alleles)
    folder = tmp_path / "pgs"
    place = "chr_name chr_position effect_allele other_allele effect_weight"
    hm = "rsID chr_name chr_position effect_allele other_allele effect_weight hm_chr hm_pos"
    scoring_file(
        folder / "a.txt",
        place,
        [
            "1 1000 G A 0.5",
            "1 1010 T C -1.5",
            "1 1020 A T 2",
            "1 1070 C G 1",
            "1 5 A C 9",
            "X 1000 G A 9",
            "1 1030 A C 9",
        ],
        pgs_id="PGS1",
        genome_build="GRCh38",
    )
    # The same variants with the other allele as effect allele, some on the other strand, one row twice.
    scoring_file(
        folder / "b.txt.gz",
        place,
        [
            "chr1 1000 A G 0.25",
            "1 1010 G A 3",
            "1 1020 T A 1",
            "1 1030 C T -2",
            "1 1000 A G 7",
            "1 1040 C bad 1",
            "1 1050 G A x",
        ],
        pgs_id="PGS2",
        genome_build="hg38",
    )
    scoring_file(
        folder / "c.txt",
        hm,
        ["rs1 9 999 G A 1.25 1 1000", "rs5 9 999 T C 0.75 1 1040", "rs6 9 999 G A 4  "],
        pgs_id="PGS3",
        genome_build="GRCh37",
        HmPOS_build="GRCh38",
    )
    # Harmonised to another build: positions mean nothing, rsIDs decide. Format 1.0 header below.
    scoring_file(folder / "d.txt", hm, ["rs8 1 1000 C G 1 1 1000"], pgs_id="PGS4", HmPOS_build="GRCh37")
    lines = [
        "# PGS ID = PGS5",
        "# Original Genome Build = hg38",
        place.replace("other", "reference").replace(" ", "\t"),
    ]
    (folder / "e.txt").write_text("\n".join([*lines, "1\t1060\tT\tC\t1", "1\t1050\tA\tG\t1"]) + "\n")
    scoring_file(
        folder / "f.txt", place.replace(" other_allele", ""), ["1 1000 G 1", "1 1030 C -3"], genome_build="GRCh38"
    )
    by_hand = [
        {0: ("G", 0.5), 1: ("T", -1.5), 2: ("A", 2), 7: ("C", 1)},
        {0: ("A", 0.25), 2: ("T", 1), 3: ("G", -2)},
        {0: ("G", 1.25), 4: ("T", 0.75), 5: ("G", 4)},
        {7: ("C", 1)},
        {5: ("A", 1)},
        {0: ("G", 1), 3: ("G", -3)},
    ]
    by_hand[1][1] = ("C", 3)  # G/A is the other strand of C/T
    return bed, folder, calls, by_hand


FIELDS = "Allele|Consequence|IMPACT|SYMBOL|Gene|BIOTYPE|SIFT|PolyPhen"


def csq(
    allele: str, consequence: str, impact: str, gene: str, sift: str = "", polyphen: str = "", biotype: str = ""
) -> str:
    return "|".join((allele, consequence, impact, gene.lower(), gene, biotype or "protein_coding", sift, polyphen))


def write_vcf(path: Path, rows: list[tuple], samples: list[str], fields: str | None = FIELDS) -> Path:
    """Write rows (chromosome, position, REF, ALT, [CSQ], {sample number: genotype}); others are 0/0."""
    contigs = "".join(f"##contig=<ID={name}>\n" for name in dict.fromkeys(row[0] for row in rows))
    info = (
        f'##INFO=<ID=CSQ,Number=.,Type=String,Description="Annotations from VEP. Format: {fields}">\n' if fields else ""
    )
    text = f'##fileformat=VCFv4.2\n{contigs}{info}##FORMAT=<ID=GT,Number=1,Type=String,Description="G">\n'
    text += (
        "\t".join([*f"#CHROM POS ID REF ALT QUAL FILTER INFO{' FORMAT' if samples else ''}".split(), *samples]) + "\n"
    )
    for chromosome, position, reference, alternative, harms, genotypes in rows:
        default = genotypes.get("all", "0/0")
        calls = [genotypes.get(number, default) for number in range(len(samples))]
        fixed = [
            chromosome,
            position,
            ".",
            reference,
            alternative,
            ".",
            ".",
            "CSQ=" + ",".join(harms),
            "GT",
            *calls,
        ]
        text += "\t".join(map(str, fixed)) + "\n"
    path.write_text(text)
    return path


def burden_rows() -> list[tuple]:
    high, missense, silent = (
        ("stop_gained", "HIGH"),
        ("missense_variant", "MODERATE"),
        ("synonymous_variant", "LOW"),
    )
    decay = "stop_gained&NMD_transcript_variant"
    lncrna = csq("T", "intron_variant", "MODIFIER", "LOF", biotype="lncRNA")
    decayed = csq("T", decay, "HIGH", "NMD", biotype="nonsense_mediated_decay")
    several = [csq("C", *silent, "MULTI"), csq("T", *high, "MULTI")]
    indel = [csq("-", "frameshift_variant", "HIGH", "INDEL"), csq("T", *silent, "INDEL")]
    return [
        ("1", 10, "A", "T", [csq("T", *high, "LOF")], {0: "0/1"}),
        ("1", 11, "A", "T", [lncrna, csq("T", *high, "LOF")], {1: "1|1"}),
        ("1", 20, "A", "T", [decayed], {0: "0/1"}),
        ("1", 21, "A", "T", [csq("T", decay, "HIGH", "NMD")], {0: "0/1"}),
        ("2", 30, "A", "T", [csq("T", *missense, "MISS", "tolerated(0.3)", "probably_damaging(0.8)")], {2: "0/1"}),
        ("2", 31, "A", "T", [csq("T", *missense, "MISS", "deleterious(0.2)", "benign(0.1)")], {3: "0/1"}),
        ("2", 32, "A", "T", [csq("T", *missense, "MISS", "tolerated(0.21)", "possibly_damaging(0.79)")], {4: "0/1"}),
        ("2", 33, "A", "T", [csq("T", *missense, "MISS")], {5: "0/1"}),
        ("2", 40, "A", "T", [csq("T", *high, "MAJOR")], {"all": "1/1", 6: "0/1"}),
        ("2", 41, "A", "T", [csq("T", *high, "COMMON")], {number: "0/1" for number in range(8)}),
        ("2", 50, "A", "T", [csq("T", *high, "HOLES")], {0: "./.", 1: "./1", 2: "1", 3: "."}),
        ("chr3", 60, "A", "C,T", several, {0: "0/1", 1: "0/2", 2: "1/2"}),
        ("chr3", 61, "AC", "A,AT", indel, {3: "0/1", 4: "0/2"}),
        ("chr3", 70, "A", "T", [csq("T", *high, "UNSEEN")], {}),
        ("X", 80, "A", "T", [csq("T", *high, "SEX")], {0: "0/1"}),
    ]
