"""VCFs as callers and tools write them: undeclared fields, FILTER, symbolic alleles, cuts, names that repeat.

Right values: the genotypes that the test wrote, and cyvcf2's own reading of them.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cyvcf2 import VCF

from benchmarks.robustness.parsers import seeds
from mrmfast.errors import UserError
from preprocess.genetics.genotypes import open_genotypes
from preprocess.genetics.genotypes.reference import orient
from tests.helpers.common import ROOT
from tests.helpers.genetics_cases import complaint, csq, needs_plink2, opened, people, preprocess, unpacked, write_vcf

HIGH = ("stop_gained", "HIGH")


def write_lines(path: Path, rows: list[str], samples: list[str], header: tuple[str, ...] = ()) -> Path:
    """Write records; spaces become tabs."""
    names = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]
    lines = ["##fileformat=VCFv4.2", *header, "\t".join(names), *("\t".join(row.split()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("fields", ["GT", "GT:DS", "DS", "GT:GP"])
def test_fields_that_the_header_does_not_declare(tmp_path, fields):
    cells = {"GT": ["0/0", "0/1", "1/1"], "DS": ["0.02", "1", "1.98"], "GP": ["1,0,0", "0,1,0", "0,0.02,0.98"]}
    columns = [":".join(cells[name][n] for name in fields.split(":")) for n in range(3)]
    rows = [f"1 {100 + n} rs{n} A G . . . {fields} {' '.join(columns)}" for n in range(3)]
    source = open_genotypes(write_lines(tmp_path / "a.vcf", rows, people(3)))
    assert source.hard_calls(np.arange(3)).tolist() == [[0, 1, 2]] * 3
    expected = [0, 1, 2] if fields == "GT" else [float(n) for n in ("0.02", "1", "1.98")]
    if fields == "GT:GP":
        expected = [0, 1, 1.98]
    np.testing.assert_allclose(source.dosages(np.arange(3)), [expected] * 3, atol=1e-4)


@pytest.mark.parametrize("convert", [False, pytest.param(True, marks=needs_plink2)])
def test_gt_is_gt_whatever_the_dosages_say(tmp_path, convert):
    """DS far from the call: with plink2 installed such calls were remade from dosages, and became missing."""
    declared = (
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="g">',
        '##FORMAT=<ID=DS,Number=A,Type=Float,Description="d">',
    )
    rows = [f"1 {100 + n} rs{n} A G . PASS . GT:DS 0/0:0.4 0/1:1.3 1/1:1.6 ./.:0.5" for n in range(3)]
    path = write_lines(tmp_path / "a.vcf", rows, people(4), ("##contig=<ID=1>", *declared))
    source = open_genotypes(path, cache=tmp_path / "cache" if convert else None)
    by_cyvcf2 = [np.where(record.gt_types == 2, -1, np.minimum(record.gt_types, 2)) for record in VCF(str(path))]
    assert np.array_equal(by_cyvcf2, [[0, 1, 2, -1]] * 3)  # cyvcf2: 2 is missing, 3 is 1/1
    assert source.hard_calls(np.arange(3)).tolist() == [[0, 1, 2, -1]] * 3


def filtered_vcf(path: Path) -> Path:
    filters = ["PASS", ".", "q10", "LowQual;q10", "pass"]
    rows = [(f"chr{1 + n}", 10, "A", "T", [csq("T", *HIGH, f"G{n}")], {n: "0/1"}) for n in range(5)]
    write_vcf(path, rows, people(60))
    lines = path.read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    body = [line.split("\t") for line in lines if not line.startswith("#")]
    for number, fields in enumerate(body):
        fields[2], fields[6] = f"rs{number}", filters[number]
    path.write_text("\n".join([*head, *("\t".join(fields) for fields in body)]) + "\n")
    return path


def test_filter_is_one_rule_for_all_commands(tmp_path, capsys):
    path = filtered_vcf(tmp_path / "a.vcf")
    scores = tmp_path / "s.txt"
    names = "chr_name\tchr_position\teffect_allele\tother_allele\teffect_weight\n"
    scores.write_text(
        "#genome_build=GRCh38\n" + names + "".join(f"{1 + n}\t10\tG\tA\t1\n".replace("G", "T") for n in range(5))
    )
    (tmp_path / "a.txt").write_text("".join(f"rs{n} G{n} x\n" for n in range(5)))
    table = ("--annotations", tmp_path / "a.txt", "--mask", "x")
    for all_filters, kept in (((), [0, 1, 4]), (("--all-filters",), [0, 1, 2, 3, 4])):
        out = tmp_path / f"d{len(kept)}"
        more = ("--out", out, "--test-fraction", 0, *all_filters)
        preprocess("snps", path, "--stride", 1, *more)
        preprocess("burden", path, "--max-maf", 0.5, *more)
        preprocess("pgs", scores, "--genotypes", path, "--ambiguous", "keep", "--min-overlap", 0.5, *more)
        told = capsys.readouterr().out
        assert opened(out, "snps").features.name.tolist() == [f"rs{n}" for n in kept]
        assert opened(out, "burden").features.name.tolist() == [f"G{n}" for n in kept]
        report = json.loads((out / "reports/pgs.json").read_text())
        assert report["scores"][0]["matched"] == len(kept)
        assert report["variants"]["filtered"] == 5 - len(kept)
        assert told.count(f"{5 - len(kept)} by FILTER") == 3, "each command tells"
        preprocess("burden", path, *table, "--max-maf", 0.5, "--out", tmp_path / f"e{len(kept)}", *all_filters)
        assert opened(tmp_path / f"e{len(kept)}", "burden").features.name.tolist() == [f"G{n}" for n in kept]


def test_filter_of_a_pvar(tmp_path):
    files = seeds.pgen()
    files["x.pvar"] = (
        files["x.pvar"].replace(b"rs1\tA\tG\tPASS", b"rs1\tA\tG\tSVM").replace(b"rs2\tA\tG\tPASS", b"rs2\tA\tG\t.")
    )
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    oriented = orient(open_genotypes(tmp_path / "x.pgen"))
    assert oriented.excluded[["id", "fate"]].to_numpy().tolist() == [["rs1", "filtered"]]
    assert orient(open_genotypes(tmp_path / "x.pgen", all_filters=True)).excluded.empty


def test_alleles_without_sequence_are_no_snps(tmp_path, capsys):
    """What ``bcftools norm -m-`` leaves of a site ``A -> G,*``, and what callers write for structure."""
    alts = ["G", "*", "<DEL>", "<NON_REF>", "<*>", "G]2:5]", ".T", "AT", "T"]
    rows = [f"1 {10 + n} rs{n} A {alt} . PASS . GT 0/1 0/0 1/1" for n, alt in enumerate(alts)]
    path = write_lines(tmp_path / "a.vcf", rows, people(3))
    preprocess("snps", path, "--stride", 1, "--out", tmp_path / "d", "--test-fraction", 0)
    assert opened(tmp_path / "d", "snps").features.name.tolist() == ["rs0", "rs7", "rs8"]
    assert "6 with an allele without sequence" in capsys.readouterr().out
    assert json.loads((tmp_path / "d/reports/snps.json").read_text())["variants"]["no_sequence"] == 6
    # A score never counts copies of "not REF" at such a record: REF is the effect allele, the other allele is unknown.
    score = tmp_path / "s.txt"
    lines = [f"1\t{10 + n}\tA\t1" for n in range(len(alts))]
    score.write_text(
        "\n".join(["#genome_build=GRCh38", "chr_name\tchr_position\teffect_allele\teffect_weight", *lines, ""])
    )
    preprocess(
        *("pgs", score, "--genotypes", path, "--out", tmp_path / "p"),
        *("--test-fraction", 0, "--ambiguous", "keep", "--min-overlap", 0.3),
    )
    entry = json.loads((tmp_path / "p/reports/pgs.json").read_text())["scores"][0]
    assert (entry["matched"], entry["absent"]) == (3, 6)


def cuts() -> dict[str, tuple[str, bytes]]:
    """A site file of VEP, cut inside INFO of its last line: plain, gzip and bgzip without its end mark."""
    text = seeds.vcf()["x.vcf"]
    inside = text[: text.rfind(b"CSQ=") + 12]
    bgzf = seeds.vcf_bgzf()["x.vcf.gz"]
    packed = gzip.compress(text)
    return {
        "plain": ("x.vcf", inside),
        "plain, in the samples": ("x.vcf", text[:-3]),
        "gzip of a cut text": ("x.vcf.gz", gzip.compress(inside)),
        "cut gzip": ("x.vcf.gz", packed[: len(packed) // 2]),
        "gzip without its checksum": ("x.vcf.gz", packed[:-8]),
        "bgzip without end mark": ("x.vcf.gz", bgzf[: -len(seeds.BGZF_END)]),
        "bgzip of a cut text": ("x.vcf.gz", seeds.bgzf(inside)),
        "empty": ("x.vcf", b""),
        "header only, cut": ("x.vcf", text[:300]),
    }


@pytest.mark.parametrize("name", cuts())
def test_a_cut_vcf_is_refused(tmp_path, capsys, name):
    file, content = cuts()[name]
    (tmp_path / file).write_bytes(content)
    for command in (("burden", tmp_path / file, "--max-maf", 0.5), ("snps", tmp_path / file)):
        message = complaint(capsys, *command, "--out", tmp_path / "d")
        assert file in message


def test_a_cut_site_file_of_annotations_is_refused(tmp_path, capsys):
    sites = b"\n".join(b"\t".join(line.split(b"\t")[:8]) for line in seeds.vcf()["x.vcf"].split(b"\n"))
    for name, content in seeds.bed().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "sites.vcf").write_bytes(sites)
    arguments = ("burden", tmp_path / "x.bed", "--annotations", tmp_path / "sites.vcf", "--max-maf", 0.5)
    preprocess(*arguments, "--out", tmp_path / "d")
    (tmp_path / "sites.vcf").write_bytes(sites[: sites.rfind(b"CSQ=") + 9])
    assert "has no end" in complaint(capsys, *arguments, "--out", tmp_path / "e")


@pytest.mark.parametrize("command", ["snps", "burden"])
def test_samples_that_repeat_are_counted_and_never_named(tmp_path, command):
    """By a process: htslib writes to stderr itself."""
    text = seeds.vcf()["x.vcf"].replace(b"\tS4\t", b"\tCANARY7701\t").replace(b"\tS6\t", b"\tCANARY7701\t")
    (tmp_path / "x.vcf").write_bytes(text)
    command_line = [sys.executable, "-m", "preprocess", command, tmp_path / "x.vcf", "--out", tmp_path / "d"]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "1 sample names occur more than once" in done.stderr
    assert "CANARY" not in done.stdout + done.stderr


def test_a_bad_line_on_an_undeclared_contig_is_named(tmp_path):
    """cyvcf2 ends the process (segmentation fault) at such a line."""
    rows = ["9 100 rs1 A G . . . GT 0/1 0/0", "9 1x0 rs2 A G . . . GT 0/1 0/0"]
    path = write_lines(tmp_path / "a.vcf", rows, people(2))
    with pytest.raises(UserError, match="line 4 is damaged"):
        open_genotypes(path)
    path.write_text(path.read_text().replace("1x0", "110").replace("\trs2", "\trs2\textra"))
    with pytest.raises(UserError, match="line 4 is damaged"):
        open_genotypes(path)


def test_formulas_in_ledgers(tmp_path):
    """OWASP's characters, from ids and genes of strangers; one ' is removed to read a cell back."""
    starts = ["=1+1|cmd", "+1", "-1", "@SUM(1)", "'quoted", "rs5", "-"]
    rows = [
        (f"{1 + n}", 10, "A", "T", [csq("T", *HIGH, start.replace("|", "!"))], {n: "0/1"})
        for n, start in enumerate(starts)
    ]
    path = write_vcf(tmp_path / "a.vcf", rows, people(60))
    lines = path.read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    body = [line.split("\t") for line in lines if not line.startswith("#")]
    for fields, start in zip(body, starts, strict=True):
        fields[2] = start
    path.write_text("\n".join([*head, *("\t".join(fields) for fields in body)]) + "\n")
    preprocess("snps", path, "--stride", 1, "--out", tmp_path / "d", "--test-fraction", 0)
    preprocess("burden", path, "--max-maf", 0.5, "--out", tmp_path / "d", "--test-fraction", 0)
    (tmp_path / "t.txt").write_text("".join(f"{start} {start} {start}\n" for start in starts))
    preprocess(
        "burden",
        path,
        "--annotations",
        tmp_path / "t.txt",
        "--mask",
        "=1+1|cmd,-1",
        "--max-maf",
        0.5,
        "--out",
        tmp_path / "e",
    )
    for ledger in ("d/reports/snps_variants", "d/reports/burden_variants", "e/reports/burden_variants"):
        text = gzip.decompress((tmp_path / f"{ledger}.tsv.gz").read_bytes()).decode()
        cells = [line.split("\t") for line in text.splitlines()]
        assert not [cell for row in cells for cell in row if cell.startswith(("=", "+", "-", "@"))]
        back = {cell.removeprefix("'") for row in cells for cell in row}
        assert {start.replace("|", "!") if "d/reports/burden" in ledger else start for start in starts} <= back
    assert unpacked(opened(tmp_path / "d", "snps")).shape == (60, 7)
