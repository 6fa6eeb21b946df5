"""Lists and tables as users have them: ``--keep``, ``--variants``, .fam, .psam, .sample, .bim, .pvar, names of files.

Right values: plink2's own reading of the same list (where it is installed), and the ids that the test wrote.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.robustness.parsers import seeds
from mrmfast.errors import UserError
from preprocess.genetics import cohort
from preprocess.genetics.genotypes import open_genotypes
from preprocess.genetics.genotypes.reference import orient
from preprocess.genetics.snps.variant_list import read_list
from tests.helpers.genetics_cases import complaint, needs_plink2, people, preprocess, write_bed

LISTED = [str(number) for number in range(10, 40)]
PSAM = "#IID\tSEX\n" + "".join(f"{name}\t{1 + int(name) % 2}\n" for name in LISTED)
KEEPS = {
    "header and sex": PSAM.encode(),
    "byte order mark, CRLF": b"\xef\xbb\xbf" + "".join(f"{name}\r\n" for name in LISTED).encode(),
    "byte order mark and header": b"\xef\xbb\xbf" + PSAM.encode(),
    "FID and IID, tabs": "".join(f"0\t{name}\n" for name in LISTED).encode(),
    "header FID and IID": ("#FID IID\n" + "".join(f"0 {name}\n" for name in LISTED)).encode(),
    "header without #": ("FID\tIID\tAGE\n" + "".join(f"0\t{name}\t50\n" for name in LISTED)).encode(),
    "a .fam": "".join(f"0  {name} 0 0 \t1 -9\n" for name in LISTED).encode(),
    "comments, blank lines": ("## made by hand\n#IID\n\n" + "\n\n".join(LISTED) + "\n\n").encode(),
    "header with SID": ("#IID SID\n" + "".join(f"{name} 1\n" for name in LISTED)).encode(),
}


@pytest.mark.parametrize("name", KEEPS)
def test_keep_lists(tmp_path, name):
    path = tmp_path / "keep.txt"
    path.write_bytes(KEEPS[name])
    assert cohort.read_keep(path) == set(LISTED)


@needs_plink2
def test_keep_lists_are_read_as_plink2_reads_them(tmp_path):
    bed = write_bed(tmp_path / "a.bed", np.ones((60, 2)), [str(n) for n in range(1, 61)], fid=["0"] * 60)
    ours = 0
    for number, content in enumerate(KEEPS.values()):
        (tmp_path / "keep.txt").write_bytes(content)
        out = tmp_path / f"o{number}"
        command = ["plink2", "--bfile", bed.with_suffix(""), "--keep", tmp_path / "keep.txt", "--make-just-psam"]
        done = subprocess.run([*command, "--allow-no-sex", "--out", out], capture_output=True, check=False)
        if done.returncode:  # this version refuses the list (comments before the header)
            continue
        kept = pd.read_csv(out.with_suffix(".psam"), sep=r"\s+", dtype=str)
        assert set(kept["IID" if "IID" in kept else "#IID"]) & set(LISTED) <= cohort.read_keep(tmp_path / "keep.txt")
        ours += len(kept) == len(LISTED)
    assert ours >= 5, "most of the lists mean the same to plink2"


def test_what_a_keep_list_lacks_is_told(tmp_path, capsys):
    bed = write_bed(tmp_path / "a.bed", np.ones((6, 2)), people(6))
    keep = tmp_path / "keep.txt"
    keep.write_text("#IID SEX\nP001 1\nP002 2\nP777 1\nP888 1\n")
    preprocess("snps", bed, "--reference", "a2", "--stride", 1, "--keep", keep, "--out", tmp_path / "d")
    assert "4 participants are not listed and are excluded; 2 listed IDs are not in the genotypes" in (
        capsys.readouterr().out
    )
    keep.write_bytes("Nuñez\n".encode("latin-1"))
    assert "iconv" in complaint(capsys, "snps", bed, "--keep", keep, "--reference", "a2", "--out", tmp_path / "e")
    for text, words in (
        ("#FID\n1\n", "names no column IID"),
        ("#FID IID\n1\n", "line 2 has no column 2"),
        ("", "empty"),
    ):
        keep.write_text(text)
        with pytest.raises(UserError, match=words):
            cohort.read_keep(keep)


def test_variant_lists(tmp_path):
    table = pd.DataFrame({"id": [f"rs{n}" for n in range(9)], "chromosome": 1, "position": range(100, 109)})
    texts = {
        "ids": "\ufeffrs3\r\nrs5\r\n\r\n",
        "header": "SNP\nrs3\nrs5\n",
        "positions": "# mine\nrs3 1 103\nrs5\tchr1\t105\n\n",
        "pandas": "rs3 1.0 103\nrs5 1.0 105\n",
        "pvar": "##x\n#CHROM POS ID REF ALT\n1 103 rs3 A G\n1 105 rs5 A G\n",
        "bim": "1 rs3 0 103 G A\n1 rs5 0 105 G A\n",
        "other header": "chromosome position rsid\n1 103 rs3\n1 105 rs5\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, newline="")
        rows, elsewhere, absent = read_list(tmp_path / name, table)
        assert (rows.tolist(), len(elsewhere), absent) == ([3, 5], 0, 0), name
    (tmp_path / "bad").write_text("rs3 1\n")
    with pytest.raises(UserError, match="line 1"):
        read_list(tmp_path / "bad", table)


def write(folder: Path, files: seeds.Files) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_white_space_marks_and_line_ends_of_companion_tables(tmp_path):
    def spoiled(files: seeds.Files) -> seeds.Files:
        texts = {}
        for name, content in files.items():
            if name.endswith((".fam", ".bim", ".sample")):
                content = content.replace(b" ", b"  \t").replace(b"\t0\t", b" 0\t ")
            if not name.endswith((".bed", ".pgen", ".bgen")):
                content = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n") + b"\r\n \r\n"
            texts[name] = content
        return texts

    for number, files in enumerate((seeds.bed(), seeds.pgen(), seeds.bgen())):
        plain = open_genotypes(write(tmp_path / f"a{number}", files))
        other = open_genotypes(write(tmp_path / f"b{number}", spoiled(files)))
        assert other.samples.tolist() == plain.samples.tolist() == seeds.ids()
        pd.testing.assert_frame_equal(other.variants, plain.variants)


def test_a_mixed_line_of_a_fam_and_a_blank_id(tmp_path):
    files = seeds.bed()
    lines = files["x.fam"].decode().splitlines()
    lines[0], lines[1] = "A B 0 0 1\t-9", "A\t\t0\t0\t1\t-9"  # PLINK takes the first; UK Biobank withdraws the second
    source = open_genotypes(write(tmp_path / "a", {**files, "x.fam": ("\n".join(lines) + "\n\n").encode()}))
    assert source.samples.tolist() == ["B", *seeds.ids()[2:]]
    assert source.counts["withdrawn"] == 1


@pytest.mark.parametrize(
    "name",
    [
        "fam",
        "bim",
        "psam",
        "pvar",
        "sample",
        "bgen ids",
        "vcf samples",
        "keep",
        "annotations",
        "variants",
        "expression",
    ],
)
def test_latin_1_is_one_line_with_a_remedy(tmp_path, capsys, name):
    bed = write(tmp_path / "bed", seeds.bed()) / "x.bed"
    options = {
        "keep": ("snps", bed, "--reference", "a2", "--keep", tmp_path / "list"),
        "variants": ("snps", bed, "--reference", "a2", "--variants", tmp_path / "list"),
        "annotations": ("burden", bed, "--reference", "a2", "--mask", "LoF", "--annotations", tmp_path / "list"),
    }
    options["expression"] = ("expression", tmp_path / "list")
    (tmp_path / "list").write_bytes("Nuñez G LoF\n".encode("latin-1"))
    if name not in options:
        files = {"fam": seeds.bed, "bim": seeds.bed, "psam": seeds.pgen, "pvar": seeds.pgen, "sample": seeds.bgen}
        content = files.get(name, seeds.bgen if name == "bgen ids" else seeds.vcf)()
        for file in content:
            if file.endswith((f".{name}", ".vcf") if name != "bgen ids" else ".bgen"):
                word = b"S1" if name not in ("bim", "pvar") else b"rs1"
                content[file] = content[file].replace(word, b"\xf1" * len(word))
        if name == "bgen ids":
            del content["x.sample"]
        options[name] = ("snps", write(tmp_path / "x", content), *(() if "vcf" in name else ("--reference", "a2")))
    message = complaint(capsys, *options[name], "--out", tmp_path / "d")
    assert "iconv" in message
    assert "\xf1" not in message
    assert "ñ" not in message


def test_uk_biobanks_names(tmp_path, capsys):
    """One .sample for all chromosomes, one .fam, a .bim of another name; the number of samples stands in the name."""
    folder = tmp_path / "bgen"
    folder.mkdir()
    files = seeds.bgen()
    for number in (1, 2, 10):
        (folder / f"ukb22828_c{number}_b0_v3.bgen").write_bytes(files["x.bgen"])
    (folder / "ukb22828_c1_b0_v3_s487202.sample").write_bytes(files["x.sample"].replace(b"S", b"T"))
    source = open_genotypes(folder)
    assert source.samples.tolist() == [name.replace("S", "T") for name in seeds.ids()], "not the ids inside the .bgen"
    assert "samples are those of ukb22828_c1_b0_v3_s487202.sample\n" in capsys.readouterr().out
    assert [file.path.name.split("_")[1] for file in source.files] == ["c1", "c2", "c10"]

    folder, files = tmp_path / "bed", seeds.bed()
    folder.mkdir()
    for number in (1, 2):
        (folder / f"ukb22418_c{number}_b0_v2.bed").write_bytes(files["x.bed"])
        bim = files["x.bim"].replace(b"1\t", b"%d\t" % number)
        (folder / f"ukb_snp_chr{number}_v2.bim").write_bytes(bim)
    (folder / "ukb22418_c1_b0_v2_s488130.fam").write_bytes(files["x.fam"])
    assert sorted(set(open_genotypes(folder).variants["chromosome"])) == [1, 2]
    (folder / "ukb22418_c2_b0_v2_s488130.fam").write_bytes(files["x.fam"].replace(b"S9", b"S8"))
    with pytest.raises(UserError, match="same ID"):
        open_genotypes(folder / "ukb22418_c2_b0_v2.bed")
    shutil.copy(folder / "ukb22418_c1_b0_v2_s488130.fam", folder / "ukb22418_c1_b0_v2_s999.fam")
    with pytest.raises(UserError, match="--sample"):
        open_genotypes(folder / "ukb22418_c1_b0_v2.bed")


@pytest.mark.parametrize(
    "header", ["ID missing sex\n0 0 D", "ID_1 ID_2 missing\n0 0 0", "id_1 id_2 missing pc1\n0 0 0 C"]
)
def test_headers_of_sample_files(tmp_path, header):
    count = len(header.split("\n")[0].split())
    names = [f"Q{number}" for number in range(seeds.SAMPLES)]
    rows = "".join(" ".join([name] * (2 if "2" in header else 1) + ["0"] * 9) + "\n" for name in names)
    text = header + "\n" + "\n".join(" ".join(line.split()[:count]) for line in rows.splitlines()) + "\n"
    source = open_genotypes(write(tmp_path / "a", {**seeds.bgen(), "x.sample": text.encode()}))
    assert source.samples.tolist() == names


@pytest.mark.parametrize("command", ["snps", "pgs", "burden"])
def test_sample_for_all_commands(tmp_path, command, capsys):
    folder = write(tmp_path / "g", {"a.bgen": seeds.bgen()["x.bgen"]})
    sample = tmp_path / "elsewhere.sample"
    sample.write_bytes(seeds.bgen()["x.sample"].replace(b"S", b"U"))
    (tmp_path / "s").mkdir()
    (tmp_path / "s/s.txt").write_bytes(seeds.scoring()["s.txt"])
    (tmp_path / "annotations").write_bytes(seeds.tables()["annotations.txt"])
    out = ("--sample", sample, "--out", tmp_path / "d", "--test-fraction", 0)
    arguments = {
        "snps": ("snps", folder, "--reference", "ref-first", "--stride", 1),
        "pgs": ("pgs", tmp_path / "s", "--genotypes", folder),
        "burden": (
            *("burden", folder, "--reference", "ref-first", "--max-maf", 0.5),
            *("--annotations", tmp_path / "annotations", "--mask", "LoF"),
        ),
    }[command]
    preprocess(*arguments, *out)
    manifest = json.loads((tmp_path / "d/dataset.json").read_text())
    assert command in manifest["genetics"]["modalities"]
    sample.write_bytes(b"\n".join(seeds.bgen()["x.sample"].split(b"\n")[:-3]) + b"\n")
    assert "--sample: names 8 samples, a.bgen holds 10" in complaint(
        capsys, *arguments, *out[:2], "--out", tmp_path / "e"
    )


def test_a1_0_is_no_evidence_against_a_fasta(tmp_path):
    """plink 1.9 keeps one allele of a SNP at which all samples have the other allele than the genome."""
    bases = "ACGT" * 5
    (tmp_path / "g.fa").write_text(f">1\n{bases}\n")
    alleles = {"allele_1": ["0"] * 6 + ["A"] * 2, "allele_2": ["T"] * 6 + ["G"] * 2}
    position = [1, 5, 9, 13, 17, 2, 3, 7]  # A at 1, 5, ...: six T there; G at 3 and 7
    bed = write_bed(tmp_path / "a.bed", np.zeros((9, 8)), people(9), bp_position=position, **alleles)
    oriented = orient(open_genotypes(bed), fasta=tmp_path / "g.fa")
    assert oriented.genotypes.variants["id"].tolist() == ["rs7", "rs8"]
    assert set(oriented.excluded["fate"]) == {"reference_mismatch"}
