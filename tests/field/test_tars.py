"""Kind 14 and the hostile tars of ``index``: read as stock WebDataset reads them, or refused in one line.

Independent tools: the standard library writes the tars; stock WebDataset reads them once more.
"""

import contextlib
import io
import json
import random
import struct
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator

from mrmfast.errors import UserError
from mrmfast.formats.image_shards import tar_samples
from mrmfast.formats.jpeg import jpeg_fault
from mrmfast.formats.sample_table import read_sample_table
from preprocess.__main__ import main
from preprocess.images.foreign_tar import images_of, read_members

SIDE = 32


def jpeg(seed=0, size=(SIDE, SIDE), kind="JPEG", **options):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, kind, **options)
    return file.getvalue()


def person(number):
    return json.dumps({"participant": str(1000 + number)}).encode()


APPLE = b"\0\5\x16\7" + bytes(159)


def write(folder, members, name="a.tar", format=tarfile.USTAR_FORMAT):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / name, "w", format=format) as tar:
        for member, content in members:
            header = tarfile.TarInfo(member)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return folder / name


def samples(count=3, name="{:04d}.{}"):
    return [
        (name.format(number, extension), content)
        for number in range(count)
        for extension, content in (("jpg", jpeg(number)), ("json", person(number)))
    ]


def with_companions(members):
    """As macOS's tar writes extended attributes: an AppleDouble file before each member."""
    return [entry for name, content in members for entry in ((f"./._{name}", APPLE), (f"./{name}", content))]


READ = {
    "plain": (samples(), 3),
    "AppleDouble members": (with_companions(samples()), 3),
    "AppleDouble members in a folder": ([("d/._0000.jpg", APPLE), *[(f"d/{n}", c) for n, c in samples()]], 3),
    "description first": ([("__info__.json", b'{"made": "by us"}'), *samples()], 3),
    "description last": ([*samples(), ("description.json", b"{}"), ("README", b"text")], 3),
    "PaxHeader kept as a file": ([("PaxHeaders.4242/0000.json", b"30 mtime=1700000000.123\n"), *samples()], 3),
    "dotted keys": (samples(name="{:04d}.left.{}"), 3),
    "two dotted images and one .json": (
        [("0000.left.jpg", jpeg(0)), ("0000.right.jpg", jpeg(1)), ("0000.json", person(0))],
        2,
    ),
    "upper case": ([("0000.JPG", jpeg()), ("0000.JSON", person(0))], 1),
    ".jpeg": ([("0000.jpeg", jpeg()), ("0000.json", person(0))], 1),
    "further members": ([("0000.cls", b"1"), ("0000.jpg", jpeg()), ("0000.json", person(0)), ("0000.txt", b"x")], 1),
    "names with spaces": (samples(name="eye {:d}.{}"), 3),
    "dots in folders": (samples(name="v1.2/{:04d}.{}"), 3),
    "absolute names": (samples(name="/etc/{:04d}.{}"), 3),
    "names with ..": (samples(name="../../{:04d}.{}"), 3),
    "names of 300 letters": (samples(name="x" * 300 + "{:04d}.{}"), 3),
}


@pytest.mark.parametrize("kind", READ)
def test_a_tar_gives_the_images_that_stock_webdataset_reads(kind, tmp_path, capsys):
    members, count = READ[kind]
    path = write(tmp_path / "d", members, format=tarfile.GNU_FORMAT)
    assert main(["index", str(tmp_path / "d"), "--test-fraction", "0"]) == 0, capsys.readouterr().err
    table, raw = read_sample_table(str(tmp_path / "d")), path.read_bytes()
    indexed = {raw[start : start + size] for start, size in zip(table.offset, table.size, strict=True)}
    stock = [
        value
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        if not sample["__key__"].endswith("/")  # what WebDataset makes of ._0000.jpg in a folder
        for field, value in sample.items()
        if field.endswith(("jpg", "jpeg"))
    ]
    assert len(table) == count and indexed == set(stock) and len(stock) == count
    assert set(table.participant.tolist()) <= {"1000", "1001", "1002"}
    assert not (tmp_path / "0000.jpg").exists()


def stock_groups(path):
    with open(path, "rb") as file:
        files = [{**entry, "__url__": ""} for entry in tar_file_iterator(file)]
    return [[field for field in sample if not field.startswith("__")] for sample in group_by_keys(files)]


@pytest.mark.parametrize("kind", [kind for kind in READ if kind != "AppleDouble members in a folder"])
def test_members_are_grouped_as_by_stock_webdataset(kind, tmp_path):
    path = write(tmp_path, READ[kind][0], format=tarfile.GNU_FORMAT)
    with tarfile.open(path) as tar:
        assert [[member.extension for member in members] for members in tar_samples(tar)] == stock_groups(path)


def unsorted():
    members = samples()
    return members[0::2] + members[1::2]


def header_of(size=0, name="0000.jpg", kind=b"0", size_field=None):
    header = tarfile.TarInfo(name)
    header.size = size
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT)[-512:])
    block[156:157] = kind
    if size_field is not None:
        block[124:136] = size_field
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def pax(**fields):
    header = tarfile.TarInfo("0000.jpg")
    header.pax_headers = fields
    header.size = 10
    return header.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def link(kind):
    header = tarfile.TarInfo("0000.jpg")
    header.type, header.linkname = kind, "/etc/passwd"
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def huge(height):
    data = jpeg()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, height) + data[at + 4 :]


def packed(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return file.getvalue()


def one(content, extension="json"):
    return packed([("0000.jpg", jpeg()), (f"0000.{extension}", content)])


# Bytes of the tar, and words of the one line.
REFUSED = {
    "all images, then all metadata": (packed(unsorted()), "not neighbours"),
    "only metadata": (packed(samples()[1::2]), "holds no JPEG images"),
    "PNG only": (packed([("0000.png", jpeg(kind="PNG")), ("0000.json", person(0))]), "the members are png"),
    "PNG named .jpg": (packed([("0000.jpg", jpeg(kind="PNG")), ("0000.json", person(0))]), "1 not a JPEG"),
    "GIF named .jpg": (packed([("0000.jpg", jpeg(kind="GIF")), ("0000.json", person(0))]), "1 not a JPEG"),
    "not square": (packed([("0000.jpg", jpeg(size=(40, 32))), ("0000.json", person(0))]), "square JPEGs"),
    "60,000 x 60,000 in the header": (packed([("0000.jpg", huge(60_000)), ("0000.json", person(0))]), "1 too large"),
    "an extension twice": (packed([("0000.jpg", jpeg()), ("0000.JPG", jpeg(1))]), "two members of one extension"),
    "no participant": (one(b"{}"), "has no field 'participant'"),
    "an empty participant": (one(b'{"participant": ""}'), "has no field 'participant'"),
    "a list for a participant": (one(b'{"participant": [1]}'), "not a text or number"),
    "a surrogate in the participant": (one(b'{"participant": "\\ud800"}'), "not valid Unicode"),
    ".json is no JSON": (one(b"{"), "is damaged"),
    ".json is Latin-1": (one('{"participant": "Nuñez"}'.encode("latin-1")), "is damaged"),
    ".json nested 100,000 times": (one(b"[" * 100_000), "nested too deeply"),
    "a name that is not UTF-8": (
        packed(samples(1)).replace(b"0000.jpg", b"00\xf10.jpg"),
        "not a complete, uncompressed tar",
    ),
    "a size of 10^15": (header_of(10**15) + jpeg() + bytes(2048), "tar"),
    "a negative size": (header_of(size_field=b"\xff" * 11 + b"\x01") + bytes(2048), "tar"),
    "a size in letters": (header_of(size_field=b"abcdefghijk\0") + bytes(2048), "tar"),
    "a sparse file of 10^15 bytes": (header_of(512, kind=b"S") + bytes(2048), "tar"),
    "a sparse file by PAX": (pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "tar"),
    "a PAX size of 10^15": (pax(size=str(10**15)), "tar"),
    "a negative PAX size": (pax(size="-512"), "tar"),
    "a symbolic link": (link(tarfile.SYMTYPE), "holds no JPEG images"),
    "a hard link": (link(tarfile.LNKTYPE), "holds no JPEG images"),
    "a FIFO": (link(tarfile.FIFOTYPE), "holds no JPEG images"),
    "cut inside a member": (packed(samples())[:1900], "tar"),
    "empty file": (b"", "tar"),
    "gzip": (b"\x1f\x8b\x08" + bytes(600), "uncompressed tar"),
    "HTML": (b"<html>404</html>" * 99, "uncompressed tar"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tar_that_is_refused_gives_one_line(kind, tmp_path, capsys):
    content, words = REFUSED[kind]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.tar").write_bytes(content)
    assert main(["index", str(tmp_path / "d")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "tar/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("mrmfast: error:") and words in lines[0], lines
    assert "a.tar" in lines[0] and "1000" not in lines[0]


def test_a_name_that_is_not_utf8_is_named_by_its_byte(tmp_path, capsys):
    header = bytearray(header_of(len(jpeg()), name="0000.jpg"))
    header[1:2] = b"\xf1"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(bytes(header) + jpeg().ljust(1024, b"\0") + bytes(1024))
    assert main(["index", str(tmp_path)]) == 2
    assert "the name of the member at byte 512 is not UTF-8" in capsys.readouterr().err


def test_images_that_no_backend_reads_are_counted_and_left_out(tmp_path, capsys):
    whole = jpeg(size=(SIDE * 4, SIDE * 4), quality=95)
    scan = whole.index(b"\xff\xda") + 14
    members = [
        ("0000.jpg", whole), ("0000.json", person(0)),
        ("0001.jpg", whole[:-40]), ("0001.json", person(1)),
        ("0002.jpg", whole[: scan + 200] + b"\xff\xd9"), ("0002.json", person(2)),
        ("0003.jpg", b"<html>"), ("0003.json", person(3)),
        ("0004.jpg", whole + bytes(32)), ("0004.json", person(4)),
    ]  # fmt: skip
    path = write(tmp_path / "d", members)
    assert main(["index", str(tmp_path / "d"), "--test-fraction", "0"]) == 3
    assert "3 images are refused by all backends" in capsys.readouterr().err
    assert read_sample_table(str(tmp_path / "d")).participant.tolist() == ["1000", "1004"]
    report = tmp_path / "d" / "reports" / "index.json"
    listed = json.loads(report.read_bytes())["unreadable"]
    assert [entry["reason"] for entry in listed] == ["truncated: no end marker", "damaged", "not a JPEG"]
    assert report.stat().st_mode & 0o077 == 0
    assert path.read_bytes()[listed[2]["byte"] :].startswith(b"<html>")
    assert main(["check", str(tmp_path / "d")]) == 0
    assert main(["index", str(tmp_path / "d"), "--test-fraction", "0", "--accept-unreadable"]) == 0


def test_the_image_field_is_chosen(tmp_path):
    write(tmp_path / "d", [("0000.left.jpg", jpeg(0)), ("0000.mask.jpg", jpeg(1)), ("0000.json", person(0))])
    assert main(["index", str(tmp_path / "d"), "--test-fraction", "0", "--image-field", "left.jpg"]) == 0
    assert len(read_sample_table(str(tmp_path / "d"))) == 1


def test_exif_orientation_is_told(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "d", [("0000.jpg", jpeg(exif=exif)), ("0000.json", person(0)), *samples(3)[2:]])
    assert main(["index", str(tmp_path / "d")]) == 0
    assert "1 images have an EXIF orientation" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(20))
def test_a_mutated_tar_is_read_or_refused(seed, tmp_path):
    generator = random.Random(seed)
    content = bytearray(packed(samples(2)))
    for _ in range(generator.choice((1, 4, 30))):
        content[generator.randrange(len(content))] = generator.randrange(256)
    path = tmp_path / "a.tar"
    path.write_bytes(content[: generator.choice((len(content), generator.randrange(len(content))))])
    with contextlib.suppress(UserError):
        for image in images_of(path, read_members(path), None):
            assert jpeg_fault(image.jpeg) in (None, "damaged", "not a JPEG", "truncated: no end marker", "too large")
