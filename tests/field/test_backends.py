"""Kind 8: one verdict and one picture of a JPEG on every backend; damage inside the data is told by ``index``.

Independent tools: Pillow writes the JPEGs and decodes them once more.
"""

import io
import struct

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline
from PIL import Image, ImageFile

from mrmfast.data.images.dali import DALIImages
from mrmfast.formats.jpeg import jpeg_ends, jpeg_fault
from mrmfast.meters import Meters
from tests.helpers.images import decode, smooth_image, spec_for
from tests.helpers.without_gpu import python_half_of_build

SIDE = 96
PICTURE = Image.fromarray(smooth_image(5, SIDE))
SIZE_AT = 5  # bytes from the marker of the frame header to height and width


def saved(picture=PICTURE, **options):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(exif=exif)


def with_thumbnail(jpeg):
    """An EXIF segment that holds a JPEG with markers of its own."""
    thumbnail = saved(PICTURE.resize((24, 24)))
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail + jpeg[2:]


def as_ycck(cmyk):
    """Declare the four channels as YCCK in Adobe's segment."""
    at = cmyk.index(b"Adobe") + 11
    return cmyk[:at] + b"\x02" + cmyk[at + 1 :]


def scan_of(jpeg):
    return jpeg.index(b"\xff\xda") + 14


def without_a_restart(jpeg):
    at = jpeg.index(b"\xff\xd3", scan_of(jpeg))
    return jpeg[: at - 20] + jpeg[at + 2 :]


def with_hole(jpeg):
    at = scan_of(jpeg) + 500
    return jpeg[:at] + bytes(300) + jpeg[at + 300 :]


def with_bad_table(jpeg):
    """Spoil a Huffman table after the first scan: libjpeg has pixels by then, but stops."""
    at = jpeg.index(b"\xff\xc4", scan_of(jpeg)) + 5
    return jpeg[:at] + b"\xff" * 16 + jpeg[at + 16 :]


def with_size(jpeg, height, width):
    at = jpeg.index(b"\xff\xc0") + SIZE_AT
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


PLAIN = saved()
PROGRESSIVE = saved(progressive=True)
# The picture is Pillow's, to one grey value.
SOUND = {
    "plain": PLAIN,
    "grey": saved(PICTURE.convert("L")),
    "progressive": PROGRESSIVE,
    "4:4:4": saved(subsampling=0),
    "4:2:2": saved(subsampling=1),
    "kept as RGB": saved(keep_rgb=True),
    "restart markers": saved(restart_marker_blocks=4),
    "32 zero bytes after the end": PLAIN + bytes(32),
    "a sector of 0xff after the end": PLAIN + b"\xff" * 512,
    "trailer of a phone": PLAIN + b"\0\0\x01\x0a\x0e\0\0\0Image_UTC_Data1700000000000SEFH\x6a\0\0\0SEFT",
    "second picture, as MPF has it": PLAIN + saved(PICTURE.rotate(90)),
    "progressive, with a trailer": PROGRESSIVE + b"trailer",
    "3 bytes before the end marker": PLAIN[:-2] + b"\0\0\0\xff\xd9",
    "40 bytes before the end marker": PLAIN[:-2] + bytes(40) + b"\xff\xd9",
    "fill bytes before the end marker": PLAIN[:-2] + b"\xff\xff\xff\xd9",
    "markers inside a comment": PLAIN[:2] + b"\xff\xfe\0\x06\xff\xd9\xff\xda" + PLAIN[2:],
    "thumbnail": with_thumbnail(PLAIN),
    "thumbnail and padding": with_thumbnail(PLAIN) + bytes(7),
    **{f"EXIF orientation {value}": turned(value) for value in range(1, 9)},
}
# The picture is one on all backends, converted to RGB by libjpeg-turbo.
FOUR_CHANNELS = {"CMYK": saved(PICTURE.convert("CMYK")), "YCCK": as_ycck(saved(PICTURE.convert("CMYK")))}
# Only a complete decode sees the damage: the backends agree on the picture, and index refuses the file.
DAMAGED = {
    "half, with an end marker": PLAIN[: len(PLAIN) // 2] + b"\xff\xd9",
    "hole of zeros": with_hole(PLAIN),
    "a restart interval is missing": without_a_restart(SOUND["restart markers"]),
    "progressive, cut inside a scan": PROGRESSIVE[: len(PROGRESSIVE) * 2 // 3] + b"\xff\xd9",
}
REFUSED = {
    "empty": b"",
    "no end marker": PLAIN[:-2],
    "one byte short": PLAIN[:-1],
    "half": PLAIN[: len(PLAIN) // 2],
    "ends in its thumbnail": with_thumbnail(PLAIN)[: with_thumbnail(PLAIN).index(b"\xff\xd9") + 2],
    "bytes before the start marker": b"\0\0" + PLAIN,
    "HTML": b"<html><body>404</body></html>",
    "12 bits": PLAIN.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "60,000 x 60,000 in the header": with_size(PLAIN, 60_000, 60_000),
    "no width": with_size(PLAIN, SIDE, 0),
    "an error in a later scan": with_bad_table(PROGRESSIVE),
}


def arrays(kinds):
    return [np.frombuffer(jpeg, np.uint8) for jpeg in kinds.values()]


@pytest.fixture(scope="module")
def decoded():
    """All kinds in one batch on both backends: name -> (picture, refused) of each."""
    kinds = SOUND | FOUR_CHANNELS | DAMAGED | REFUSED
    results = [decode(backend, arrays(kinds), size=SIDE, stored=SIDE) for backend in ("cpu", "dali")]
    return {
        name: [(pictures[number].astype(int), bool(bad[number])) for pictures, bad in results]
        for number, name in enumerate(kinds)
    }


def pillow(jpeg):
    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_jpeg_is_one_picture(decoded, name):
    (cpu, cpu_bad), (dali, dali_bad) = decoded[name]
    assert not cpu_bad and not dali_bad
    assert np.array_equal(cpu, dali)
    assert np.abs(cpu - pillow(SOUND[name])).max() <= 1
    assert jpeg_fault(SOUND[name]) is None


@pytest.mark.parametrize("name", FOUR_CHANNELS)
def test_four_channels_differ_by_one_grey_value_at_most(decoded, name):
    (cpu, cpu_bad), (dali, dali_bad) = decoded[name]
    assert not cpu_bad and not dali_bad and cpu.std() > 10
    assert np.abs(cpu - dali).max() <= 1
    assert jpeg_fault(FOUR_CHANNELS[name]) is None


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_inside_the_data_is_one_picture_and_is_told(decoded, name, monkeypatch):
    (cpu, cpu_bad), (dali, dali_bad) = decoded[name]
    assert (cpu_bad, dali_bad) == (False, False)
    assert np.array_equal(cpu, dali)
    assert jpeg_fault(DAMAGED[name]) == "damaged"
    # The independent reader has to be as tolerant as libjpeg here; the patch ends with this test.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert np.abs(cpu - pillow(DAMAGED[name])).max() <= 1


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_jpeg_is_refused_by_all(decoded, name):
    (cpu, cpu_bad), (dali, dali_bad) = decoded[name]
    assert cpu_bad and dali_bad
    assert not cpu.any() and not dali.any()
    assert jpeg_fault(REFUSED[name]) is not None


def test_one_refused_jpeg_leaves_its_neighbours_alone(decoded):
    assert np.array_equal(decoded["plain"][1][0], decode("dali", [np.frombuffer(PLAIN, np.uint8)], size=SIDE)[0][0])


def test_the_gpu_graph_takes_the_same_arguments(monkeypatch):
    """No GPU is needed: the decoder's arguments and the files that it is fed are those of the CPU graph."""
    monkeypatch.setattr(Pipeline, "build", python_half_of_build)
    arguments = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        images = DALIImages(lambda: pytest.fail("nothing is decoded"), spec_for(device=device), Meters())
        [decoder] = [op._op for op in images._pipeline._ops if type(op._op).__name__ == "Image"]
        arguments.append({name: str(value) for name, value in decoder._init_args.items()})
    assert arguments[0] == arguments[1] and arguments[0]["adjust_orientation"] == "False"


@pytest.mark.parametrize("cut", range(2, len(PLAIN) - 2, len(PLAIN) // 40))
def test_a_jpeg_that_ends_early_never_passes(cut):
    assert not jpeg_ends(PLAIN[:cut]) and jpeg_fault(PLAIN[:cut]) is not None
    assert not jpeg_ends(with_thumbnail(PLAIN)[:cut]) or PLAIN[:cut].endswith(b"\xff\xd9")


def test_a_decoder_that_refuses_damage_gets_the_picture_of_the_cpu(monkeypatch):
    """NvJPEG may refuse what libjpeg decodes: then DALI is fed the CPU's picture without loss."""
    jpegs = arrays({"plain": PLAIN, "cut": DAMAGED["half, with an end marker"]})
    fed, runs = [], []
    feed, run = DALIImages._feed, Pipeline.run

    def fail_once(self):
        outputs = run(self)
        runs.append(self)
        if len(runs) == 1:
            raise RuntimeError("damaged image")
        return outputs

    monkeypatch.setattr(DALIImages, "_feed", lambda self: [inputs := feed(self), fed.append(inputs[0])][0])
    monkeypatch.setattr(Pipeline, "run", fail_once)
    pictures, bad = decode("dali", jpegs, size=SIDE, stored=SIDE)
    assert not bad.any()
    [(kept, _), *_] = [files for files in fed if bytes(files[1][:4]) == b"\x89PNG"]
    assert kept is jpegs[0]
    assert np.array_equal(pictures[1], decode("cpu", jpegs, size=SIDE, stored=SIDE)[0][1])
