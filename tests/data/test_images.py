"""The image backends keep one contract: same images, the same ones flagged, nothing left behind."""

import io
import threading
import time

import cv2
import numpy as np
import psutil
import pytest
import simplejpeg
import torch

from mrmfast.data.images import warp as compiled
from mrmfast.data.images.augment import warp_matrices
from mrmfast.data.images.backend import DecodeRequest
from mrmfast.data.images.buffers import Buffers
from mrmfast.data.images.decode_memory import DecodeMemory
from mrmfast.data.images.reference import warp_reference
from mrmfast.data.images.warp import SPARE, warp
from mrmfast.models.patch_embed import normalise
from tests.helpers.common import real_data
from tests.helpers.images import decode, encode, open_backend, smooth_image, straight

BACKENDS = ("cpu", "dali")


@pytest.mark.parametrize("shape", [(64, 64), (80, 64), (40, 64), (61, 61), (9, 7)])
def test_the_compiled_warp_equals_the_reference(shape):
    side, size = shape
    generator = np.random.default_rng(0)
    spare = np.empty(side * side * 3 + SPARE, np.uint8)
    spare[:] = generator.integers(0, 255, len(spare))
    image = spare[: side * side * 3].reshape(side, side, 3)
    angles = np.array([0, 0, 17, -20, 45, 90, 180, 3.3])
    for matrix in warp_matrices(angles, np.arange(8) % 2 == 1, size):
        out = np.full((size, size, 3), 77, np.uint8)
        warp(image, matrix, out)
        floats = np.full((3, size, size), np.nan, np.float32)
        warp(image, matrix, floats)
        assert np.allclose(floats, normalise(torch.from_numpy(out).permute(2, 0, 1)[None])[0].numpy(), atol=1e-6)
        expected = warp_reference(image, matrix * np.float32(side / size), size).astype(int)
        # Weights have seven binary places: half a place across and half down, of a step of 255 at most.
        assert np.abs(out - expected).max() <= 3
        assert np.abs(out - expected).mean() <= 0.6


@pytest.mark.parametrize("linear", [[1, 0, 0, 1], [-1, 0, 0, 1]])
def test_a_shift_alone_is_a_warp_too(linear):
    image = np.empty(64 * 64 * 3 + SPARE, np.uint8)[: 64 * 64 * 3].reshape(64, 64, 3)
    image[:] = smooth_image(2)
    across = 0 if linear[0] > 0 else 64
    for shift in ((0, 0), (5, 0), (0, -7), (2.5, 3.25)):
        matrix = np.float32([[*linear[:2], across + shift[0]], [*linear[2:], shift[1]]])
        out = np.empty((64, 64, 3), np.uint8)
        warp(image, matrix, out)
        difference = np.abs(out - warp_reference(image, matrix, 64).astype(int))
        assert difference.max() <= (3 if any(shift) else 0), shift


def test_without_a_compiler_opencv_warps(monkeypatch):
    image = np.ascontiguousarray(smooth_image(1))
    matrix = warp_matrices(np.array([11.0]), np.array([True]), 64)[0]
    expected = warp_reference(image, matrix, 64).astype(int)
    monkeypatch.setattr(compiled, "library", lambda: None)
    out = np.empty((64, 64, 3), np.uint8)
    warp(image, matrix, out)
    assert np.abs(out - expected).mean() <= 1
    floats = np.empty((3, 64, 64), np.float32)
    warp(image, matrix, floats)
    assert np.allclose(floats, normalise(torch.from_numpy(out).permute(2, 0, 1)[None])[0].numpy(), atol=1e-6)
    warp(image, warp_matrices(np.zeros(1), np.array([True]), 64)[0], out)
    assert np.array_equal(out, image[:, ::-1])


def test_the_warp_stays_inside_its_image():
    """A row's fast pixels write a byte too many: never beyond the output."""
    image = np.empty(64 * 64 * 3 + SPARE, np.uint8)[: 64 * 64 * 3].reshape(64, 64, 3)
    image[:] = 200
    both, floats = np.full((2, 64, 64, 3), 9, np.uint8), np.full((2, 3, 64, 64), 9, np.float32)
    for angle, flip in ((0.0, False), (0.0, True), (5.0, False), (20.0, True)):
        matrix = warp_matrices(np.array([angle]), np.array([flip]), 64)[0]
        warp(image, matrix, both[0])
        warp(image, matrix, floats[0])
        assert (both[1] == 9).all()
        assert (floats[1] == 9).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_floats_are_the_bytes_normalised(backend):
    jpegs = [encode(smooth_image(n)) for n in range(9)] + [np.empty(0, np.uint8)]
    matrices = warp_matrices(np.linspace(-20, 20, 10), np.arange(10) % 2 == 1, 64)
    pixels, bad = decode(backend, jpegs, matrices=matrices)
    floats, also_bad = decode(backend, jpegs, matrices=matrices, pixels="float32")
    assert floats.dtype == np.float32
    assert bad.tolist() == also_bad.tolist() == [False] * 9 + [True]
    expected = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert np.allclose(floats, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    assert torch.equal(normalise(expected), expected)


def test_memory_of_batches_is_used_again_but_never_while_somebody_holds_it():
    buffers = Buffers((4, 8, 8, 3), np.uint8, keep=2)
    first = torch.from_numpy(buffers.take())
    assert first.data_ptr() % 64 == 0
    view, where = first[1:].permute(0, 3, 1, 2), first.data_ptr()
    view.fill_(7)
    del first
    others = [torch.from_numpy(buffers.take()).fill_(9) for _ in range(4)]
    assert (view == 7).all()
    assert len({where, *(one.data_ptr() for one in others)}) == 5
    del view
    assert torch.from_numpy(buffers.take()).data_ptr() == where
    del others
    assert len(buffers._free) == 2


def test_a_plain_view_of_a_view_holds_the_memory():
    """NumPy's views refer to the first array of their own kind; what gives the memory back must lie beyond it."""
    buffers = Buffers((4, 8, 8, 3), np.uint8, keep=2)
    for view_of in (lambda lent: np.asarray(lent)[1:], lambda lent: np.array(lent, copy=None)[..., 0].T, memoryview):
        view = view_of(buffers.take())
        assert not buffers._free
        assert np.shares_memory(view, view)
        del view
        assert len(buffers._free) == 1
        buffers.take()


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_a_batch_that_is_held_keeps_its_pixels(pixels):
    jpegs = [encode(smooth_image(n)) for n in range(8)]
    shades = iter(range(100))

    def source():
        turn = next(shades)
        return DecodeRequest([jpegs[(turn + n) % 8] for n in range(4)], (straight(4, 64),))

    images = open_backend("cpu", source, batch=4, pixels=pixels)
    held = [images.run().views[0] for _ in range(24)]
    images.close()
    for turn in range(16):
        assert torch.equal(held[turn], held[turn + 8])
        assert not torch.equal(held[turn], held[turn + 1])


@pytest.mark.parametrize(("stored", "size"), [(224, 224), (224, 112), (512, 224), (300, 224)])
def test_backends_agree_on_real_photographs(stored, size):
    """Issue 4, line 6: at most 2/255 on 100 real tiles for the same parameters."""
    files = sorted(real_data("fundus").rglob("*.jpg"))[:20]
    generator = np.random.default_rng(0)
    jpegs = []
    for path in files:
        image = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_2)
        for _ in range(5):
            side = int(generator.integers(min(image.shape[:2]) // 2, min(image.shape[:2])))
            top, left = (int(generator.integers(0, edge - side + 1)) for edge in image.shape[:2])
            tile = image[top : top + side, left : left + side]
            jpegs.append(encode(cv2.resize(tile, (stored, stored), interpolation=cv2.INTER_AREA)))
    matrices = warp_matrices(generator.uniform(-20, 20, 100), generator.random(100) < 0.5, size)
    decoded = [decode(backend, jpegs, size=size, stored=stored, matrices=matrices)[0] for backend in BACKENDS]
    difference = np.abs(decoded[0].astype(int) - decoded[1]).mean(axis=(1, 2, 3))
    print(f"{stored} to {size}: mean {difference.mean():.2f}, worst image {difference.max():.2f} of 255")
    assert len(jpegs) == 100
    assert difference.mean() <= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_be_read_is_flagged_and_black(backend):
    good = encode(smooth_image(0))
    garbage = good.copy()
    garbage[2:-2] = 0x55
    jpegs = [good, good[:-20], np.empty(0, np.uint8), garbage, encode(smooth_image(3), ".png"), good]
    decoded, bad = decode(backend, jpegs)
    assert bad.tolist() == [False, True, True, True, True, False]
    assert (decoded[bad] == 0).all()
    assert np.array_equal(decoded[0], decoded[5])
    assert decoded[0].any()


def test_an_image_larger_than_memory_is_flagged():
    bomb = encode(smooth_image(0)).copy()
    at = bytes(bomb).index(b"\xff\xc0") + 5
    bomb[at : at + 4] = 0xFF  # 65,535 x 65,535 pixels
    assert decode("cpu", [bomb])[1].tolist() == [True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_kinds_of_jpeg(backend):
    image = smooth_image(0)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    jpegs = [encode(grey), encode(image, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), encode(image)]
    decoded, bad = decode(backend, jpegs)
    assert not bad.any()
    assert np.abs(decoded[0].astype(int) - grey[..., None]).mean() <= 2
    assert np.abs(decoded[1].astype(int) - decoded[2]).mean() <= 1


def test_the_number_of_threads_changes_nothing():
    jpegs = [encode(smooth_image(n)) for n in range(40)]
    matrices = warp_matrices(np.linspace(-20, 20, 40), np.arange(40) % 2 == 1, 64)
    one, three = (decode("cpu", jpegs, matrices=matrices, threads=threads)[0] for threads in (1, 3))
    assert np.array_equal(one, three)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_of_the_source_comes_after_the_batches_before_it(backend):
    jpeg, calls = encode(smooth_image(0)), []

    def source():
        calls.append(1)
        if len(calls) == 4:
            raise ConnectionError("the link is down")
        return DecodeRequest([jpeg] * 2, (straight(2, 64),))

    images = open_backend(backend, source, batch=2, threads=1)
    for _ in range(3):
        assert len(images.run().views[0]) == 2
    for _ in range(2):
        with pytest.raises(ConnectionError, match="the link is down"):
            images.run()
    images.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_in_the_middle_leaves_nothing(backend):
    jpegs = [encode(smooth_image(n)) for n in range(16)]

    def once():
        images = open_backend(backend, lambda: DecodeRequest(jpegs, (straight(16, 64),)), batch=16, depth=3)
        images.run()
        images.close()

    once()
    threads, files = threading.active_count(), psutil.Process().num_fds()
    for _ in range(5):
        once()
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    assert psutil.Process().num_fds() <= files


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_images_of_a_group_do_not_touch_each_other(pixels):
    """Unreadable ones among readable ones, in groups and chunks of every length: each is what it is alone."""
    jpegs = [encode(smooth_image(n)) for n in range(19)]
    jpegs[1] = jpegs[6] = jpegs[7] = np.zeros(9, np.uint8)
    matrices = warp_matrices(np.linspace(-20, 20, 19), np.arange(19) % 2 == 1, 64)
    together, bad = decode("cpu", jpegs, matrices=matrices, pixels=pixels)
    assert np.flatnonzero(bad).tolist() == [1, 6, 7]
    for n in range(19):
        alone = decode("cpu", jpegs[n : n + 1], matrices=matrices[n : n + 1], threads=1, pixels=pixels)[0][0]
        assert np.array_equal(together[n], alone), n


@pytest.mark.parametrize("stored", [64, 150])
def test_an_image_larger_than_the_dataset_says_is_decoded_all_the_same(stored):
    """It does not fit the memory that a thread keeps, and neither does its neighbour take its place."""
    small, large = encode(smooth_image(1)), encode(smooth_image(2, size=100))
    matrices = warp_matrices(np.full(4, 9.0), np.zeros(4, bool), 64)
    got, bad = decode("cpu", [small, large, large, small], stored=stored, matrices=matrices)
    assert not bad.any()
    assert np.array_equal(got[0], got[3]) and np.array_equal(got[1], got[2])
    expected = cv2.resize(smooth_image(2, size=100)[..., ::-1], (64, 64), interpolation=cv2.INTER_AREA)
    spare = np.empty(64 * 64 * 3 + SPARE, np.uint8)[: 64 * 64 * 3].reshape(64, 64, 3)
    spare[:] = expected
    assert np.abs(got[1].astype(int) - warp_reference(spare, matrices[1], 64)).mean() <= 3


def test_cmyk_is_decoded_by_the_cpu():
    """Simplejpeg converts it into memory of its own, which has no bytes to spare after it."""
    from PIL import Image

    image = Image.fromarray(smooth_image(3)[..., ::-1]).convert("CMYK")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    got, bad = decode("cpu", [np.frombuffer(file.getvalue(), np.uint8), encode(smooth_image(3))])
    assert not bad.any()
    assert got[0].std() > 10 and np.array_equal(got[1], decode("cpu", [encode(smooth_image(3))])[0][0])


def test_an_error_of_a_decoding_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(DecodeMemory, "decode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decode("cpu", [encode(smooth_image(0))])


@pytest.mark.parametrize("size", [64, 32])
def test_sound_images_stay_where_they_are_decoded(size):
    """No copy, no memory of their own: that costs more than all the Python around it."""
    memory = DecodeMemory(3, 64, (size,))
    for turn in range(3):
        for number in range(3):
            assert memory.decode(encode(smooth_image(number)), 3 * turn + number, (size,))
        assert memory._reduced == [[None] * 3] and memory._large == [None] * 3
        assert list(memory.items[0]) == [
            value for n in range(3) for value in (3 * turn + n, memory._slots[n].address, size)
        ]
        # Rows at whole vectors would bypass the caches in libjpeg-turbo, and the warp would wait for memory.
        assert all(address % 32 == 16 for address in memory.items[0][1::3])
        assert [number for number, _ in memory.images(0)] == [3 * turn + n for n in range(3)]
        memory.clear()


def test_an_image_is_decoded_without_a_look_at_its_header(monkeypatch):
    """Each call of simplejpeg's takes the interpreter lock: a sound image needs one."""
    calls = []
    header = simplejpeg.decode_jpeg_header
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda jpeg: calls.append(1) or header(jpeg))
    jpegs = [encode(smooth_image(n)) for n in range(8)]
    assert not decode("cpu", jpegs)[1].any()
    assert not decode("cpu", jpegs, size=32)[1].any()
    assert not calls
    garbage = np.concatenate([jpegs[0][:2], np.full(99, 0x55, np.uint8), jpegs[0][-2:]])
    assert decode("cpu", [garbage])[1].all()
    assert calls
