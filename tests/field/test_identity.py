"""Who is in an image: layouts of paths, patterns and tables. The right people are stated beside each layout."""

from __future__ import annotations

import csv
import itertools
import json
import random
import stat
from pathlib import Path

import pytest

from benchmarks.robustness import layouts
from benchmarks.robustness.layouts import random_layout, verdict
from mrmfast.errors import UserError
from mrmfast.formats.labels import read_labels
from mrmfast.formats.manifest import SplitRule, read_manifest
from mrmfast.formats.sample_table import read_sample_table
from preprocess.__main__ import main
from preprocess.images.layouts import BARCODES, CLASSES, FOLDERS, NAMES, OWN, UKB_NAMES
from preprocess.images.participants import ParticipantRule
from tests.helpers.source_folders import write_photographs

# Layout -> path: participant, and the layout that must be told.
RIGHT = {
    "UK Biobank": (
        {"1000012_21015_0_0.png": "1000012", "1000012_21016_0_0.png": "1000012", "1000013_21016_1_0.png": "1000013"},
        UKB_NAMES,
    ),
    "another field of UK Biobank": (
        {"1000012_20208_2_0.png": "1000012", "a/1000012_20208_3_0.png": "1000012"},
        UKB_NAMES,
    ),
    "PatientNNN_L": (
        {"Patient001_L.jpg": "Patient001", "Patient001_R.jpg": "Patient001", "Patient12_L.jpg": "Patient12"},
        NAMES,
    ),
    "PatientNNNL": (
        {"Patient001L.jpg": "Patient001", "Patient001R.jpg": "Patient001", "Patient002L.jpg": "Patient002"},
        NAMES,
    ),
    "EyePACS": ({"1234_left.jpeg": "1234", "1234_right.JPEG": "1234", "12_left.jpeg": "12"}, NAMES),
    "CHASE": ({"Image_01L.jpg": "Image_01", "Image_01R.jpg": "Image_01", "Image_02L.jpg": "Image_02"}, NAMES),
    "a folder a patient": (
        {"p1/left.jpg": "p1", "p1/right.jpg": "p1", "p2/left.jpg": "p2", "p2/right.jpg": "p2"},
        FOLDERS,
    ),
    "a folder a number": ({"1001/OD.png": "1001", "1001/OS.png": "1001", "1002/OD.png": "1002"}, FOLDERS),
    "a folder a name": ({"John Doe/left.jpg": "John Doe", "Mary/left.jpg": "Mary", "Mary/right.jpg": "Mary"}, FOLDERS),
    "patient and eye": ({"P001/OD/img1.png": "P001", "P001/OS/img1.png": "P001", "P002/OD/img1.png": "P002"}, FOLDERS),
    "patient and visit": (
        {
            "patient1/2019-01-03/left.jpg": "patient1",
            "patient1/2020-02-04/left.jpg": "patient1",
            "patient2/2019-01-03/left.jpg": "patient2",
        },
        FOLDERS,
    ),
    "number, visit, eye": ({"12/v1/OD/img1.png": "12", "12/v2/OS/img1.png": "12", "13/v1/OD/img1.png": "13"}, FOLDERS),
    "eye above patient": ({"left/1000012.png": "1000012", "right/1000012.png": "1000012"}, NAMES),
    "BIDS": (
        {"sub-01/ses-1/sub-01_ses-1_eye-L.png": "sub-01", "sub-02/ses-1/sub-02_ses-1_eye-L.png": "sub-02"},
        FOLDERS,
    ),
    "CheXpert": (
        {
            "train/patient00001/study1/view1_frontal.jpg": "patient00001",
            "train/patient00002/study1/view1_frontal.jpg": "patient00002",
        },
        FOLDERS,
    ),
    "MIMIC-CXR": (
        {"p10/p10000032/s50414267/02.jpg": "p10000032", "p10/p10000764/s57375967/02.jpg": "p10000764"},
        FOLDERS,
    ),
    "TCGA tiles": (
        {
            "TCGA-02-0001-01Z-00-DX1.3f2c/0_0.jpg": "TCGA-02-0001",
            "TCGA-02-0001-01Z-00-DX2.99/0_0.jpg": "TCGA-02-0001",
            "TCGA-02-0003-01Z-00-DX1/0_0.jpg": "TCGA-02-0003",
        },
        BARCODES,
    ),
    "TCGA slides": (
        {"a/tcga-02-0001-01Z-00-DX1.svs": "TCGA-02-0001", "b/TCGA-02-0003-01Z.svs": "TCGA-02-0003"},
        BARCODES,
    ),
    "GTEx": ({"GTEX-1117F-0126.svs": "GTEX-1117F", "GTEX-1117F-0226.svs": "GTEX-1117F"}, BARCODES),
    "tiles of slides": ({"slide_01/0000_0001.jpg": "slide_01", "slide_02/0000_0001.jpg": "slide_02"}, FOLDERS),
    "ImageFolder": ({"class_a/0001.jpg": "class_a/0001", "class_b/0001.jpg": "class_b/0001"}, CLASSES),
    "ImageFolder with splits": (
        {"train/0_healthy/IMG_1.png": "train/0_healthy/IMG_1", "test/0_healthy/IMG_1.png": "test/0_healthy/IMG_1"},
        CLASSES,
    ),
    "ImageFolder, unique names": ({"melanoma/ISIC_1.jpg": "ISIC_1", "nevus/ISIC_2.jpg": "ISIC_2"}, CLASSES),
    "ImageFolder with eyes": ({"0/10_left.jpeg": "10", "2/10_right.jpeg": "10", "1/11_left.jpeg": "11"}, NAMES),
    "IDRiD": (
        {
            "a. Training Set/IDRiD_001.jpg": "a. Training Set/IDRiD_001",
            "b. Testing Set/IDRiD_001.jpg": "b. Testing Set/IDRiD_001",
        },
        CLASSES,
    ),
    "IDRiD, one folder": ({"IDRiD_001.jpg": "IDRiD_001", "IDRiD_002.jpg": "IDRiD_002"}, OWN),
    "Messidor": (
        {
            "Base11/20051019_38557_0100_PP.tif": "20051019_38557_0100_PP",
            "Base12/20051020_43808_0100_PP.tif": "20051020_43808_0100_PP",
        },
        OWN,
    ),
    "digits of another script": ({"١٢٣_left.jpg": "١٢٣", "١٢٣_right.jpg": "١٢٣", "١٢٤_left.jpg": "١٢٤"}, NAMES),
    "composed and decomposed": (
        {"Jos\u00e9_OD.jpg": "Jos\u00e9", "Jose\u0301_OS.jpg": "Jos\u00e9", "Mary_OD.jpg": "Mary"},
        NAMES,
    ),
    "blanks": ({"Patient 1 L.jpg": "Patient 1", "Patient 1 R.jpg": "Patient 1", "12 left (1).jpg": "12"}, NAMES),
    "visit in the name": (
        {"1234_2019-01-03_left.jpg": "1234", "1234_20200506_right.jpg": "1234", "1235_2019-01-03_left.jpg": "1235"},
        NAMES,
    ),
}
AMBIGUOUS = {
    "person or class": ["a/0001.jpg", "b/0001.jpg"],
    "person or grade": ["0/1.jpg", "1/1.jpg"],
    "numbers per site": ["siteA/1_left.jpg", "siteB/1_right.jpg"],
    "numbers per class": ["glaucoma/P001_L.jpg", "normal/P001_L.jpg"],
    "patients per site": ["siteA/P001/left.jpg", "siteB/P001/left.jpg"],
    "patients per class": ["glaucoma/patient1/left.jpg", "normal/patient1/left.jpg"],
    "eyes of nobody": ["left.jpg", "right.jpg"],
    "eyes with counters": ["left_001.jpg", "right_001.jpg"],
    "counters of two people": ["john/img1_left.jpg", "mary/img1_right.jpg"],
    "a camera's counter a day": ["20190103/1_left.jpg", "20190104/1_left.jpg"],
    "a counter a day": ["2019-01-03/1_left.jpg", "2019-01-04/1_left.jpg"],
    "a counter after a date": ["2019-01-03_1_left.jpg", "2019-01-04_1_left.jpg"],
    "a camera's counter a visit": ["visit1/img_1_left.jpg", "visit2/img_1_left.jpg"],
    "a camera's counter an eye": ["left/img_1_left.jpg", "right/img_1_right.jpg"],
    "a site's dates": ["oslo/20190103/left.jpg", "oslo/20190104/left.jpg"],
    "people in buckets": ["00000/John/left.jpg", "00001/Mary/left.jpg"],
    "buckets of images": ["00000/00001.png", "00000/00002.png", "00001/01001.png"],
    "years": ["2019/img1.jpg", "2020/img1.jpg"],
    "case": ["Patient1_L.jpg", "patient1_R.JPG"],
    "full-width digits": ["\uff11\uff12_left.jpg", "12_right.jpg"],
    "suffixes": ["1.jpg", "1.png"],
    "a file and an ID": ["12.jpg", "12_left.jpg"],
    "two barcodes": ["TCGA-02-0001/TCGA-02-0003-01Z.svs"],
    "folder against name": ["patient1/subject2_left.jpg", "patient1/subject3_left.jpg"],
    "slides of one person": ["1001/slide_1/0_0.jpg", "1001/slide_2/0_0.jpg", "1002/slide_3/0_0.jpg"],
}


@pytest.mark.parametrize("layout", RIGHT)
def test_a_layout_is_recognised_and_told(layout: str) -> None:
    truth, told = RIGHT[layout]
    participants = ParticipantRule().apply(sorted(truth))
    assert {source.file: source.participant for source in participants.sources} == truth
    assert participants.layouts == {told: len(truth)}


@pytest.mark.parametrize("layout", AMBIGUOUS)
def test_an_ambiguous_layout_is_one_line_with_remedies(layout: str) -> None:
    with pytest.raises(
        UserError, match=r"do not tell the people apart: .*--participant-pattern.*--participant-table"
    ) as raised:
        ParticipantRule().apply(sorted(AMBIGUOUS[layout]))
    assert "\n" not in str(raised.value)


def test_the_remedies_of_the_message_work() -> None:
    files = ["a/0001.jpg", "b/0001.jpg", "b/0002.jpg"]
    with pytest.raises(UserError) as raised:
        ParticipantRule().apply(files)
    person, image = (text.partition("'")[0] for text in str(raised.value).split("--participant-pattern '")[1:3])
    assert [source.participant for source in ParticipantRule(person).apply(files).sources] == ["a", "b", "b"]
    assert [source.participant for source in ParticipantRule(image).apply(files).sources] == [
        "a/0001",
        "b/0001",
        "b/0002",
    ]


def test_eye_visit_class_and_slide() -> None:
    files = ["P001/2019-01-03/OD_1.png", "glaucoma/9_l.jpg", "TCGA-02-0001-01Z-00-DX1.3f/0_0.jpg", "12_21016_0_0.png"]
    known = [ParticipantRule().apply([file]).sources[0].metadata for file in files]
    assert known == [
        {"eye": "right", "visit": "2019-01-03"},
        {"eye": "left", "class": "glaucoma"},
        {"slide": "TCGA-02-0001-01Z-00-DX1"},
        {"eye": "right"},
    ]


def test_no_random_layout_merges_people() -> None:
    """Of all ways to name people, folders and files: right, refused, or each image a participant, and told."""
    cases = list(itertools.product(layouts.PEOPLE.values(), layouts.FOLDERS, layouts.NAMES))
    rng = random.Random(4)
    samples = [layout for case in rng.sample(cases, 700) if (layout := random_layout(rng, *case))]
    verdicts = [verdict(layout) for layout in samples]
    assert len(verdicts) > 500
    assert set(verdicts) <= {"right", "refused", "split and told"}
    assert verdicts.count("right") > 0.5 * len(verdicts)


# ------------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "people"),
    [
        (r"(?P<participant>[^/]+)/", ["a7", "a7", "b9"]),
        (r"^(?P<participant>\w+)/(?P<visit>v\d)/(?P<eye>left|right)", ["a7", "a7", "b9"]),
        (r"(?P<participant>[ab]\d)", ["a7", "a7", "b9"]),
        (r"/(?P<participant>v\d)/", ["v1", "v2", "v1"]),
    ],
)
def test_a_pattern_sees_the_path(pattern: str, people: list[str]) -> None:
    files = ["a7/v1/left.jpg", "a7/v2/right.jpg", "b9/v1/left.jpg"]
    sources = ParticipantRule(pattern).apply(files).sources
    assert [source.participant for source in sources] == people
    if "visit" in pattern:
        assert sources[1].metadata == {"visit": "v2", "eye": "right"}


@pytest.mark.parametrize(
    ("pattern", "files", "line"),
    [
        (r"(?P<participant>\d+)_", ["2020_scan/12_left.jpg"], "fits a folder and a file"),
        (r"(?P<participant>\d+)_", ["x/12_left.jpg", "a/left.jpg", "b/left.jpg"], "2 of 3 image files do not match"),
        (r"(?P<participant>\d+)_", ["12_left.jpg", "a/12.jpg"], "1 of 2 image files do not match"),
        (r"(\d+)_", ["12_left.jpg"], "needs a group"),
        (r"(?P<participant>", ["12_left.jpg"], "not a regular expression"),
    ],
)
def test_a_pattern_that_may_merge_people_is_refused(pattern: str, files: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        ParticipantRule(pattern).apply(files)


# --------------------------------------------------------------------------------------------------------------- tables

FILES = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/3.png"]


def table(folder: Path, text: str | bytes) -> ParticipantRule:
    path = folder / "people.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ParticipantRule(table=path)


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|", " "])
def test_any_delimiter_and_further_columns(tmp_path: Path, delimiter: str) -> None:
    rows = [
        "grade age file patient eye",
        "2 61 a/1.jpg p1 OD",
        "0 50 ./a/2.jpg p1 Left",
        "1 70 b\\1.jpg p2 NA",
        "3 1 3.png p3 r",
    ]
    participants = table(tmp_path, "\n".join(rows).replace(" ", delimiter)).apply(FILES)
    assert [source.participant for source in participants.sources] == ["p1", "p1", "p2", "p3"]
    assert [source.metadata.get("eye") for source in participants.sources] == ["right", "left", None, "right"]
    assert participants.sources[0].labels == {"grade": "2", "age": "61"}


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbffile,participant\r\na/1.jpg,x\r\na/2,x\r\nb/1.jpg,y\r\n3,z\r\nc/9.jpg,q\r\n",
        "file;participant\na/1.jpg;x\n2;x\nb/1;y\nb/3.png;z\ngone.jpg;q\n".encode("utf-16"),
        b'"Image Path"\t"Subject ID"\n"a/1.jpg"\tx\n"a/2.jpg"\tx\n"b/1.jpg"\ty\n"b/3.png"\tz\n\n"d"\tq\n',
    ],
)
def test_marks_suffixes_headers_and_rows_without_a_file(tmp_path: Path, text: bytes) -> None:
    participants = table(tmp_path, text).apply(FILES)
    assert [source.participant for source in participants.sources] == ["x", "x", "y", "z"]
    assert participants.unused_rows == 1


GOOD = "file,participant\na/1.jpg,x\na/2.jpg,x\nb/1.jpg,y\nb/3.png,z\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD.replace("a/1.jpg", "1.jpg"), "line 2: 2 files below SRC have this name; give the path"),
        (GOOD + "./a/2.jpg,w\n", "line 6: repeats a file of an earlier line"),
        (GOOD.replace("b/3.png,z\n", ""), "has no line for 1 of the 4 image files"),
        (GOOD.replace("b/3.png", "b/4.png"), "and 1 of its lines name no file below SRC"),
        (GOOD.replace("b/3.png,z", "b/3.png,"), "line 5: lacks a file or participant"),
        (GOOD.replace("participant", "who"), "has no column 'participant'"),
        (GOOD.replace("file", "thing"), "has no column 'file'"),
        ("file,patient,subject\na/1.jpg,1,2\n", "'patient' and 'subject' may both name people"),
        ("file,participant,eye\na/1.jpg,x,up\n", "line 2: the eye is not left, right"),
        (GOOD.replace("a/2.jpg,x", "a/2.jpg,x,7"), "line 3: has 3 cells, the header 2"),
        (
            GOOD.replace("b/1.jpg,y", "b/1.jpg,Nu\xf1ez").encode("latin-1"),
            "line 4: is not text in UTF-8; convert the file",
        ),
        ("", "has no column 'file'"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, text: str | bytes, line: str) -> None:
    with pytest.raises(UserError, match=line) as raised:
        table(tmp_path, text).apply(FILES)
    assert "people.txt" in str(raised.value)
    assert "\n" not in str(raised.value)


# --------------------------------------------------------------------------------------------------------- the dataset


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients, a folder each, both eyes; the numbers of the images repeat in every folder."""
    folder = tmp_path_factory.mktemp("patients") / "src"
    return write_photographs(folder, [f"patient{n}/{eye}.jpg" for n in range(10) for eye in ("left", "right")])


def test_both_eyes_are_on_one_side_and_every_sample_has_its_source(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{path.relative_to(patients)};{path.parent.name};{n};=1+1"
        for n, path in enumerate(sorted(patients.rglob("*.jpg")))
    ]
    people = tmp_path / "people.csv"
    people.write_text("path;patient;grade;note\n" + "\n".join(rows))
    out = tmp_path / "ds"
    options = ["--size", "32", "--workers", "1", "--test-fraction", "0.5", "--brightness-percent", "0"]
    assert main(["fundus", str(patients), "--out", str(out), "--participants", str(people), *options]) == 0
    assert main(["fundus", str(patients), "--out", str(tmp_path / "layout"), *options]) == 0
    assert f"10 participants, identified by: {FOLDERS} (20)" in capsys.readouterr().out
    report = json.loads((tmp_path / "layout/reports/fundus.json").read_text())
    assert report["counts"]["identified_by"] == {FOLDERS: 20}
    for dataset in (out, tmp_path / "layout"):
        samples, rule = read_sample_table(str(dataset)), read_manifest(dataset).splits
        sides = {
            name: {rule.of(person) for person in samples.participant if person == name} for name in samples.participant
        }
        assert set(map(len, sides.values())) == {1}
        assert set.union(*sides.values()) == {"train", "test"}
        sources = dataset / "reports" / "fundus.sources.tsv"
        assert stat.S_IMODE(sources.stat().st_mode) == 0o600
        with open(sources, newline="") as file:
            mapped = list(csv.DictReader(file, delimiter="\t"))
        assert [row["key"] for row in mapped] == samples.key.tolist()
        assert all(row["file"] == f"{row['participant']}/{row['eye']}.jpg" for row in mapped[:20] if row.get("eye"))
        assert [row["participant"] for row in mapped] == samples.participant.tolist()
    labels = read_labels(out / "reports/fundus.sources.tsv", kind="values", columns=["grade"], identifier="key")
    assert labels.values[:, 0].tolist() == list(range(20))
    assert "'=1+1" in (out / "reports/fundus.sources.tsv").read_text()


def test_pseudonyms_hide_paths_visits_and_labels(tmp_path: Path) -> None:
    source = write_photographs(tmp_path / "src", [f"patient70{n}/2019-01-0{n}/left.jpg" for n in range(1, 4)])
    (tmp_path / "key").write_text("0123456789abcdef0123")
    people = tmp_path / "people.csv"
    people.write_text(
        "file,participant,visit,hospital\n"
        + "".join(f"patient70{n}/2019-01-0{n}/left.jpg,patient70{n},2019-01-0{n},H-4711\n" for n in range(1, 4))
    )
    options = ["--size", "32", "--workers", "1", "--pseudonymise", str(tmp_path / "key"), "--test-fraction", "0"]
    assert main(["fundus", str(source), "--out", str(tmp_path / "a"), *options]) == 0
    assert (
        main(["fundus", str(source), "--out", str(tmp_path / "b"), "--participant-table", str(people), *options]) == 0
    )
    for path in (path for name in "ab" for path in (tmp_path / name).rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not any(secret in content for secret in (b"patient70", b"2019-01", b"H-4711")), path


def test_index_maps_keys_to_members(tmp_path: Path, patients: Path) -> None:
    assert main(["fundus", str(patients), "--out", str(tmp_path / "a"), "--size", "32", "--workers", "1"]) == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.tar").write_bytes((tmp_path / "a/images/shard-000000.tar").read_bytes())
    assert main(["index", str(tmp_path / "b")]) == 0
    with open(tmp_path / "b/reports/index.sources.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["key"] for row in rows] == read_sample_table(str(tmp_path / "b")).key.tolist()
    assert {row["file"] for row in rows} == {"x.tar"}
    assert rows[3]["member"].endswith(".jpg") and rows[3]["participant"] == "patient1"
    assert stat.S_IMODE((tmp_path / "b/reports/index.sources.tsv").stat().st_mode) == 0o600


# -------------------------------------------------------------------------------------------------------------- kinship

PAIRS = [
    ("7001", "7002", 0.25),
    ("7002", "7003", 0.0884),
    ("7004", "7005", 0.0883),
    ("7006", "7007", 0.3),
    ("-1", "7008", 0.4),
    ("-1", "7009", 0.4),
]
FAMILIES = [["7001", "7002", "7003"], ["7006", "7007"]]
TABLES = {
    "KING .kin0": ("FID1\tID1\tFID2\tID2\tN_SNP\tHetHet\tIBS0\tKinship", "0\t{0}\t0\t{1}\t9\t0.1\t0.1\t{2}"),
    "KING .kin": (
        "FID\tID1\tID2\tN_SNP\tZ0\tPhi\tHetHet\tIBS0\tKinship\tError",
        "f\t{0}\t{1}\t9\t1\t0\t0.1\t0.1\t{2}\t0",
    ),
    "plink2": ("#IID1\tIID2\tNSNP\tHETHET\tIBS0\tKINSHIP", "{0}\t{1}\t9\t0.1\t0.1\t{2}"),
    "plink2 with FID": ("#FID1\tIID1\tFID2\tIID2\tNSNP\tHETHET\tIBS0\tKINSHIP", "0\t{0}\t0\t{1}\t9\t0.1\t0.1\t{2}"),
    "ukb_rel.dat": ("ID1 ID2 HetHet IBS0 Kinship", "{0} {1} 0.1 0.1 {2}"),
    "CSV": ("id1,id2,kinship", "{0},{1},{2}"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_relatives_are_on_one_side(tmp_path: Path, kind: str) -> None:
    header, line = TABLES[kind]
    kinship = tmp_path / "related"
    kinship.write_text("\n".join([header, *(line.format(*pair) for pair in PAIRS)]) + "\n")
    source = write_photographs(tmp_path / "src", [f"70{n:02d}_left.jpg" for n in range(1, 10)])
    options = ["--out", str(tmp_path / "ds"), "--size", "32", "--workers", "1", "--test-fraction", "0.5"]
    assert main(["fundus", str(source), *options, "--kinship", str(kinship)]) == 0
    rule = read_manifest(tmp_path / "ds").splits
    assert rule.families() == FAMILIES
    assert "700" not in (tmp_path / "ds/dataset.json").read_text().replace(rule.relatives, "")
    alone = SplitRule(0, 0.5)
    for family in FAMILIES:
        assert {rule.of(person) for person in family} == {alone.of(min(family))}
    assert [rule.of(name) for name in ("7004", "7005", "7008")] == [alone.of(name) for name in ("7004", "7005", "7008")]
    assert main(["fundus", str(source), *options]) == 2  # without the table: another rule


def test_families_stay_together_at_any_seed() -> None:
    families = [[str(9000 + 3 * n + k) for k in range(3)] for n in range(40)]
    for seed in range(5):
        rule = SplitRule.of_families(seed, 0.3, families)
        sides = [set(rule.training(family).tolist()) for family in families]
        assert set(map(len, sides)) == {1}
        assert 15 < sum(side == {True} for side in sides) < 40


def test_a_dataset_without_its_relatives_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_photographs(tmp_path / "src", ["7001_left.jpg", "7002_left.jpg"])
    kinship = tmp_path / "k.kin0"
    kinship.write_text("ID1 ID2 Kinship\n7001 7002 0.25\n")
    dataset = tmp_path / "ds"
    assert (
        main(
            ["fundus", str(source), "--out", str(dataset), "--size", "32", "--workers", "1", "--kinship", str(kinship)]
        )
        == 0
    )
    assert main(["check", str(dataset)]) == 0
    (dataset / "relatives.json").write_text('{"families": []}\n')
    with pytest.raises(UserError, match=r"relatives\.json: SHA-256 differs"):
        read_manifest(dataset)
    assert main(["check", str(dataset)]) == 1
    (dataset / "relatives.json").unlink()
    with pytest.raises(UserError, match=r"relatives\.json: is missing"):
        read_manifest(dataset).splits.training(["7001"])
    capsys.readouterr()
    for text, line in [
        ("ID1 ID2 Phi\n", "no column KINSHIP"),
        ("ID1 ID2 Kinship\n1 2\n", "line 2: has 2 cells"),
        ("ID1 ID2 Kinship\n1 2 x\n", "line 2: the kinship is not a number"),
    ]:
        kinship.write_text(text)
        assert main(["fundus", str(source), "--out", str(tmp_path / "e"), "--kinship", str(kinship)]) == 2
        assert line in capsys.readouterr().err
