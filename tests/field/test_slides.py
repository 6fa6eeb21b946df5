"""Kinds 4 and 5: slides that OpenSlide sees with one level, and what a slide says of its resolution.

Independent tools: tifffile and pydicom write the slides, OpenSlide opens them, and NumPy cuts the expected tiles from
the pixels that were written.
"""

import io
import json

import cv2
import numpy as np
import openslide
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, generate_uid

from mrmfast.formats.sample_table import read_sample_table
from preprocess.__main__ import main
from preprocess.images.outcome import Excluded
from preprocess.images.pathology import region
from preprocess.images.pathology.resolution import find_resolution
from preprocess.images.pathology.slide import is_slide
from tests.helpers.common import real_data

TILE = 64


def tissue(width, height):
    """Pink with violet squares of its own size at each place."""
    y, x = np.mgrid[:height, :width]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = (228, 130, 190)
    pixels[((y % 32) < 8 + y // 64) & ((x % 32) < 8 + x // 64)] = (110, 55, 140)
    return pixels


SLIDE = tissue(640, 448)


def halves(pixels, count):
    levels = [pixels]
    for _ in range(count):
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return levels


def write(path, levels, *, per_cm=None, per_inch=None, sub_ifds=False, flag=True, description=None):
    """A tiled TIFF; further levels as SubIFDs or as pages, with or without the flag of an overview."""
    unit, value = ("CENTIMETER", per_cm) if per_cm else ("INCH", per_inch)
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "metadata": None}
    if value:
        options |= {"resolution": (value, value), "resolutionunit": unit}
    with tifffile.TiffWriter(path) as tiff:
        first = {"subifds": len(levels) - 1} if sub_ifds else {}
        tiff.write(levels[0], description=description, **first, **options)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1 if flag else 0, **options)
    return path


def ome(micrometres, unit="µm"):
    """OME-XML as Bio-Formats and QuPath write it, in ASCII."""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" PhysicalSizeX="{micrometres}" PhysicalSizeXUnit="{unit}"/>'
        "</Image></OME>"
    )
    return text.encode()


def aperio(power, mpp):
    return f"Aperio Image Library v12\n640x448 |AppMag = {power}|MPP = {mpp}".encode()


def dicom(folder, pixels, mpp, series, kind="VOLUME"):
    """One level of a slide as VL Whole Slide Microscopy, tiles of 128 pixels in JPEG."""
    height, width = pixels.shape[:2]
    frames = []
    for y in range(0, height, 128):
        for x in range(0, width, 128):
            piece = pixels[y : y + 128, x : x + 128]
            rest = ((0, 128 - piece.shape[0]), (0, 128 - piece.shape[1]), (0, 0))
            frame = np.pad(piece, rest, constant_values=255)
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=95)
            frames.append(file.getvalue())
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    shared, optical = Dataset(), Dataset()
    shared.PixelMeasuresSequence, optical.OpticalPathIdentifier = [measures], "0"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), JPEGBaseline8Bit
    data = Dataset()
    data.file_meta, data.SOPClassUID = meta, meta.MediaStorageSOPClassUID
    data.SOPInstanceUID, data.SeriesInstanceUID, data.StudyInstanceUID = generate_uid(), series, generate_uid()
    data.Modality, data.ImageType = "SM", ["ORIGINAL", "PRIMARY", kind, "NONE"]
    data.Rows = data.Columns = 128
    data.NumberOfFrames, data.SamplesPerPixel, data.PlanarConfiguration = len(frames), 3, 0
    data.PhotometricInterpretation, data.PixelRepresentation = "YBR_FULL_422", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.DimensionOrganizationType, data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = "TILED_FULL", 1, 1
    data.SharedFunctionalGroupsSequence, data.OpticalPathSequence = [shared], [optical]
    data.PixelData = encapsulate(frames)
    data["PixelData"].is_undefined_length = True
    data.save_as(folder / f"{data.SOPInstanceUID[-9:]}.dcm", enforce_file_format=True)


def tile_slides(source, out, *options):
    """Tile slides in this process; return the exit status and the report."""
    arguments = ["--size", str(TILE), "--tile", str(TILE), "--test-fraction", "0", "--workers", "1"]
    status = main(["pathology", str(source), "--out", str(out), *arguments, *options])
    path = out / "reports" / "pathology.json"
    return status, json.loads(path.read_bytes()) if path.exists() else None


def stored_tiles(out):
    """Pixels (RGB) and place of each stored tile."""
    table, raw = read_sample_table(str(out)), (out / "images" / "shard-000000.tar").read_bytes()
    tiles = []
    for start, size in zip(table.offset.tolist(), table.size.tolist(), strict=True):
        jpeg = np.frombuffer(raw[start : start + size], np.uint8)
        text = raw[raw.index(b'{"', start + size) :]
        metadata = json.loads(text[: text.index(b"}") + 1])
        tiles.append((cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1].astype(int), metadata))
    return tiles


# One level for OpenSlide; 0.5 microns per pixel is 20x.
ONE_LEVEL = {
    "plain tiled TIFF": lambda path: write(path, [SLIDE], per_cm=20_000),
    "OME-TIFF with SubIFDs": lambda path: write(path, halves(SLIDE, 2), sub_ifds=True, description=ome(0.5)),
    "OME-TIFF, size in nanometres": lambda path: write(path, [SLIDE], description=ome(500, "nm")),
    "overviews without the flag": lambda path: write(path, halves(SLIDE, 2), per_cm=20_000, flag=False),
    "resolution in inches": lambda path: write(path, [SLIDE], per_inch=50_800),
}


@pytest.mark.parametrize("kind", ONE_LEVEL)
def test_a_slide_of_one_level_is_tiled(kind, tmp_path):
    (tmp_path / "src").mkdir()
    path = ONE_LEVEL[kind](tmp_path / "src" / "TCGA-02-0003-01Z-00-DX1.tif")
    with openslide.OpenSlide(path) as slide:
        assert slide.level_count == 1
    status, report = tile_slides(tmp_path / "src", tmp_path / "out")
    assert status == 0 and report["sources"][0]["mpp"] == 0.5
    tiles = stored_tiles(tmp_path / "out")
    assert len(tiles) > 20
    for pixels, place in tiles:
        assert place["side"] == TILE
        right = SLIDE[place["y"] : place["y"] + TILE, place["x"] : place["x"] + TILE].astype(int)
        assert np.abs(pixels - right).mean() < 6  # JPEG


def test_a_small_tiled_tiff_is_a_tile(tmp_path):
    assert not is_slide(write(tmp_path / "a.tif", [SLIDE[:128, :128]]), TILE)
    assert is_slide(write(tmp_path / "b.tif", [SLIDE[:128, :256]]), TILE)
    assert is_slide(write(tmp_path / "c.tif", halves(SLIDE[:128, :128], 1)), TILE)
    Image.fromarray(SLIDE).save(tmp_path / "d.tif")  # strips: OpenSlide does not read it
    assert not is_slide(tmp_path / "d.tif", TILE)


def test_regions_are_read_in_blocks(tmp_path, monkeypatch):
    """Blocks give the pixels of one piece, and the largest block bounds the memory."""
    path = write(tmp_path / "a.tif", [SLIDE])
    asked = []
    original = openslide.OpenSlide.read_region

    def read(self, corner, level, size):
        asked.append(size[0] * size[1])
        return original(self, corner, level, size)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", read)
    with openslide.OpenSlide(path) as slide:
        complete = region.thumbnail(slide, 160)
        assert asked == [640 * 448]
        monkeypatch.setattr(region, "BLOCK_PIXELS", 10_000)
        asked.clear()
        blocks = region.thumbnail(slide, 160)
    assert max(asked) <= 10_000 and sum(asked) == 640 * 448
    assert np.array_equal(blocks, complete)
    assert np.array_equal(complete[..., ::-1], cv2.resize(SLIDE, (160, 112), interpolation=cv2.INTER_AREA))


class Endless:
    """A slide of 100,000 x 80,000 pixels in one level, 32 GB at once; any block of it is white."""

    dimensions = 100_000, 80_000
    level_downsamples = (1.0,)

    def __init__(self):
        self.asked = []

    def get_best_level_for_downsample(self, downsample):
        return 0

    def read_region(self, corner, level, size):
        self.asked.append((*corner, *size))
        return Image.new("RGBA", (8, 8), (255, 255, 255, 255))


@pytest.mark.parametrize(("extent", "side"), [((100_000, 80_000), 2048), ((40_960, 40_960), 512), ((513, 513), 512)])
def test_no_block_of_a_huge_slide_exceeds_the_bound(extent, side):
    slide = Endless()
    if extent == slide.dimensions:
        assert region.thumbnail(slide, side).shape == (1638, 2048, 3)
    else:
        region.read_region(slide, (7, 9), extent, (side, side))
    assert max(width * height for *_, width, height in slide.asked) <= 1.01 * region.BLOCK_PIXELS
    assert sum(width * height for *_, width, height in slide.asked) == extent[0] * extent[1]


MPP_X, POWER, COMMENT = (
    openslide.PROPERTY_NAME_MPP_X,
    openslide.PROPERTY_NAME_OBJECTIVE_POWER,
    openslide.PROPERTY_NAME_COMMENT,
)
DIFFER = ("objective power and pixel size differ by a third or more: pixel size used",)
IMPLAUSIBLE = ("recorded pixel size implausible, objective power used",)


@pytest.mark.parametrize(
    ("properties", "stated", "mpp", "remarks"),
    [
        ({MPP_X: "0.25", POWER: "40"}, None, 0.25, ()),
        ({MPP_X: "0.5", POWER: "40"}, None, 0.5, DIFFER),  # resampled, the power is that of the scan
        ({MPP_X: "0.25", POWER: "20"}, None, 0.25, DIFFER),
        ({MPP_X: "0.2325", POWER: "40"}, None, 0.2325, ()),  # Hamamatsu
        ({POWER: "20"}, None, 0.5, ()),
        ({POWER: "20", MPP_X: "352.7777"}, None, 0.5, IMPLAUSIBLE),  # 72 dpi
        ({POWER: "40", MPP_X: "nan"}, None, 0.25, ()),
        ({MPP_X: "0.5", POWER: "unknown"}, None, 0.5, ()),
        ({MPP_X: "0,5", POWER: "20"}, None, 0.5, ()),
        ({MPP_X: "0.5", POWER: "20"}, 0.25, 0.25, ()),
        ({}, 0.25, 0.25, ()),
        ({COMMENT: ome(0.23).decode()}, None, 0.23, ()),
        ({COMMENT: ome(230, "nm").decode(), MPP_X: "352.7"}, None, 0.23, ()),
    ],
)
def test_pixel_size_comes_before_power(properties, stated, mpp, remarks):
    resolution = find_resolution(properties, stated)
    assert resolution.mpp == pytest.approx(mpp) and resolution.remarks == remarks


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({}, "pixel size not recorded"),
        ({MPP_X: "0"}, "pixel size not recorded"),
        ({MPP_X: "352.77"}, "pixel size implausible"),  # 72 dpi
        ({MPP_X: "264.58"}, "pixel size implausible"),  # 96 dpi
        ({MPP_X: "84.67"}, "pixel size implausible"),  # 300 dpi
        ({MPP_X: "1000"}, "pixel size implausible"),  # libvips: 1 pixel a millimetre
        ({MPP_X: "10000"}, "pixel size implausible"),  # 1 pixel a centimetre
        ({MPP_X: "0.0001"}, "pixel size implausible"),
    ],
)
def test_placeholders_are_no_resolution(properties, reason):
    with pytest.raises(Excluded, match=reason):
        find_resolution(properties, None)


@pytest.mark.parametrize("tags", [{"per_inch": 72}, {"per_inch": 300}, {"per_cm": 10}, {"per_cm": 1}, {}])
def test_a_slide_without_a_resolution_names_the_remedy_that_tiles_it(tags, tmp_path, capsys):
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "TCGA-02-0003-01Z-00-DX1.tif", halves(SLIDE, 2), **tags)
    status, _ = tile_slides(tmp_path / "src", tmp_path / "a")
    assert status == 2 and "--mpp states it" in capsys.readouterr().err
    status, report = tile_slides(tmp_path / "src", tmp_path / "b", "--mpp", "0.5")
    assert status == 0 and report["sources"][0]["mpp"] == 0.5 and len(stored_tiles(tmp_path / "b")) > 20


def test_tiles_cover_the_field_of_the_pixel_size(tmp_path, capsys):
    """The page's case: 0.5 microns, 40x recorded. Power first would cut tiles of twice the side."""
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "TCGA-02-0003-01Z-00-DX1.svs", halves(SLIDE, 2), description=aperio(40, 0.5))
    status, report = tile_slides(tmp_path / "src", tmp_path / "out")
    assert status == 0 and report["counts"]["remarks"] == {DIFFER[0]: 1}
    assert DIFFER[0] in capsys.readouterr().out
    assert {place["side"] for _, place in stored_tiles(tmp_path / "out")} == {TILE}


@pytest.mark.parametrize("text", ["0", "-1", "353", "half", "nan"])
def test_a_stated_resolution_must_be_plausible(text, tmp_path, capsys):
    assert tile_slides(tmp_path, tmp_path / "out", "--mpp", text)[0] == 2
    assert "must be a number from 0.05 to 10" in capsys.readouterr().err


def test_dicom_slides_are_one_slide_per_series(tmp_path):
    folder = tmp_path / "src" / "TCGA-02-0003"
    folder.mkdir(parents=True)
    series = generate_uid()
    levels = halves(SLIDE, 1)
    dicom(folder, levels[0], 0.5, series)
    dicom(folder, levels[1], 1.0, series)
    dicom(folder, SLIDE[:128, :128], 0.5, series, kind="LABEL")
    other = tmp_path / "src" / "TCGA-02-0004"
    other.mkdir()
    dicom(other, SLIDE, 0.5, generate_uid())
    assert pydicom.dcmread(next(other.iterdir())).Modality == "SM"
    status, report = tile_slides(tmp_path / "src", tmp_path / "out")
    assert status == 0 and len(report["sources"]) == 2 and report["counts"]["dicom_levels"] == 2
    for pixels, place in stored_tiles(tmp_path / "out")[::7]:
        right = SLIDE[place["y"] : place["y"] + TILE, place["x"] : place["x"] + TILE].astype(int)
        assert np.abs(pixels - right).mean() < 8


def test_a_file_that_is_no_dicom_slide_is_counted(tmp_path):
    (tmp_path / "TCGA-02-0003.dcm").write_bytes(bytes(128) + b"DICM" + bytes(200))
    write(tmp_path / "TCGA-02-0004.tif", [SLIDE], per_cm=20_000)
    status, report = tile_slides(tmp_path, tmp_path / "out")
    assert status == 3 and [entry["file"] for entry in report["unreadable"]] == ["TCGA-02-0003.dcm"]


def test_the_real_slide_has_the_resolution_that_openslide_reads():
    with openslide.OpenSlide(real_data("pathology/wsi") / "CMU-1-Small-Region.svs") as slide:
        resolution = find_resolution(slide.properties, None)
        assert resolution.mpp == float(slide.properties[MPP_X]) and not resolution.remarks
        whole = np.asarray(slide.get_thumbnail((512, 512)).convert("RGB")).astype(int)
        ours = region.thumbnail(slide, 512)[..., ::-1].astype(int)
    assert ours.shape == whole.shape and np.abs(ours - whole).mean() < 4
