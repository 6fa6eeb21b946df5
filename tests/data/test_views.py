"""Several views of one decode, and masks: every backend against the plain reference."""

import hashlib
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline

from mrmfast.batch import Photometric, ViewSpec
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.images import cpu, warp
from mrmfast.data.images.augment import draw_crops, draw_matrices, needed_side, resolve_views, warp_matrices
from mrmfast.data.images.backend import DecodeRequest
from mrmfast.data.images.dali import DALIImages
from mrmfast.data.images.masks import decode_mask
from mrmfast.data.images.reference import decode_reference, masks_reference, warp_mask_reference
from mrmfast.data.images.warp import warp_mask
from mrmfast.data.loader import Loader
from mrmfast.data.sampling.sampler import Slice
from mrmfast.errors import UserError
from mrmfast.meters import Meters
from mrmfast.models.patch_embed import normalise
from tests.helpers.common import write_dataset
from tests.helpers.images import decode_batch, encode, open_backend, picture, spec_for, straight
from tests.helpers.without_gpu import python_half_of_build

BACKENDS = ("cpu", "dali")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
# A large crop, a small one, the whole picture turned, and one that is as it is.
VIEWS = (
    ViewSpec(32, crop=(0.3, 1.0), rotation=20.0, flip=0.5),
    ViewSpec(20, crop=(0.05, 0.3), flip=0.5),
    ViewSpec(48, rotation=20.0, flip=0.5),
    ViewSpec(16),
)


def slice_of(count, epoch=0):
    sample = np.arange(count)
    return Slice(sample, np.full(count, epoch), sample, count)


def drawn(views, count, seed=0):
    views = resolve_views(views, size=32, rotation=0.0, flip=0.0)
    return tuple(draw_matrices(slice_of(count), view, seed=seed, number=n) for n, view in enumerate(views))


def png(mask):
    """Bytes of a mask, (H, W) or (H, W, C); OpenCV takes blue first."""
    return encode(mask if mask.ndim == 2 else mask[..., [2, 1, 0, 3][: mask.shape[2]]], ".png")


def random_mask(seed, side=64, channels=3):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (side, side, channels), dtype=np.uint8)


@pytest.mark.parametrize("stored", [64, 160])
@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_one_decode_equal_the_reference(backend, stored):
    """A view is within 2/255 on average, a picture within 3/255: decoders scale and average differently."""
    count = 24
    jpegs = [encode(picture(n, stored)) for n in range(count)]
    matrices = drawn(VIEWS, count)
    decoded = decode_batch(backend, DecodeRequest(jpegs, matrices), views=VIEWS, stored=stored)
    sizes = [view.size for view in VIEWS]
    assert [tuple(view.shape) for view in decoded.views] == [(count, 3, size, size) for size in sizes]
    assert not decoded.bad.any() and decoded.mask is None
    differences = np.zeros((len(VIEWS), count))
    for number in range(count):
        expected = decode_reference(jpegs[number], [matrix[number] for matrix in matrices], sizes)
        for view, (ours, plain) in enumerate(zip(decoded.views, expected, strict=True)):
            differences[view, number] = np.abs(ours[number].permute(1, 2, 0).numpy().astype(int) - plain).mean()
    print(f"{backend}, {stored} px: mean of each view {differences.mean(1).round(2)}, worst {differences.max():.2f}")
    assert (differences.mean(1) <= 2).all()
    assert differences.max() <= 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_view_does_not_depend_on_the_others(backend):
    """Where the decode scale is the same, a view's bytes are those it has alone."""
    views = (ViewSpec(64, crop=(0.3, 1.0), flip=0.5), ViewSpec(80, rotation=20.0), ViewSpec(60, crop=(0.05, 0.3)))
    jpegs, matrices = [encode(picture(n)) for n in range(8)], drawn(views, 8)
    together = decode_batch(backend, DecodeRequest(jpegs, matrices), views=views)
    for number, view in enumerate(views):  # each needs all of the 64 pixels
        alone = decode_batch(backend, DecodeRequest(jpegs, (matrices[number],)), views=(view,))
        assert torch.equal(alone.views[0], together.views[number])


def test_a_small_crop_keeps_its_resolution():
    """Fine stripes survive in a crop; a decode at the scale of the whole picture would make them grey."""
    stored, size = 256, 32
    stripes = np.zeros((stored, stored, 3), np.uint8)
    stripes[:, ::8] = stripes[:, 1::8] = stripes[:, 2::8] = stripes[:, 3::8] = 255
    box = np.array([[0.25, 0.25, 0.25, 0.25]])  # 64 of 256 pixels: 2 a pixel, so a stripe is 2 pixels wide
    crop = warp_matrices(np.zeros(1), np.zeros(1, bool), size, box)
    whole = straight(1, size)
    views = (ViewSpec(size), ViewSpec(size, crop=(0.06, 0.07)))
    assert needed_side(crop, size).tolist() == [128] and needed_side(whole, size).tolist() == [32]
    for backend in BACKENDS:
        decoded = decode_batch(backend, DecodeRequest([encode(stripes)], (whole, crop)), views=views, stored=stored)
        assert decoded.views[0].float().std() < 30  # a stripe every pixel: grey
        assert decoded.views[1].float().std() > 80, backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_floats_of_all_views_are_the_bytes_normalised(backend):
    jpegs = [encode(picture(n)) for n in range(5)] + [np.empty(0, np.uint8)]
    request = DecodeRequest(jpegs, drawn(VIEWS, 6))
    bytes_, floats = (decode_batch(backend, request, views=VIEWS, pixels=kind) for kind in ("uint8", "float32"))
    for pixels, normal in zip(bytes_.views, floats.views, strict=True):
        assert torch.allclose(normal, normalise(pixels), atol=1e-5)
        assert (pixels[5] == 0).all()
    assert floats.bad.tolist() == bytes_.bad.tolist() == [False] * 5 + [True]


def test_without_a_compiler_views_and_masks_are_the_same(monkeypatch):
    jpegs, masks = [encode(picture(n)) for n in range(9)], [png(random_mask(n)) for n in range(9)]
    request = DecodeRequest(jpegs, drawn(VIEWS, 9), (masks,))
    compiled = decode_batch("cpu", request, views=VIEWS, masks=(3,))
    for module in (cpu, warp):
        monkeypatch.setattr(module, "library", lambda: None)
    plain = decode_batch("cpu", request, views=VIEWS, masks=(3,))
    assert torch.equal(compiled.mask, plain.mask)
    for ours, theirs in zip(compiled.views, plain.views, strict=True):
        assert (ours.float() - theirs.float()).abs().mean() <= 1


# Masks


def nearest(mask, matrix, size):
    """One pixel after another: which input pixel does the centre of an output pixel fall into?"""
    height, width, channels = mask.shape
    out = np.full((channels, size, size), 255, np.uint8)
    for row, column in itertools.product(range(size), repeat=2):
        x, y = matrix.astype(np.float64) @ (column + 0.5, row + 0.5, 1.0)
        x, y = int(np.floor(x * width / size)), int(np.floor(y * height / size))
        if 0 <= x < width and 0 <= y < height:
            out[:, row, column] = mask[y, x]
    return out


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("side", [32, 50, 13])
def test_the_mask_warp_equals_numpys_exactly(side, channels):
    mask = random_mask(side, side, channels)
    angles = np.array([0, 0, 17, -20, 45, 90, 3.3, 180])
    boxes = draw_crops(slice_of(8), (0.1, 1.0), seed=0, stream=0)
    for matrix in [*warp_matrices(angles, np.arange(8) % 2 == 1, 32, boxes), *warp_matrices(angles, angles > 20, 32)]:
        out = np.full((channels, 32, 32), 77, np.uint8)
        warp_mask(mask, matrix, out)
        assert np.array_equal(out, warp_mask_reference(mask, matrix, 32))
        assert (out != nearest(mask, matrix, 32)).mean() <= 0.003  # a centre on an edge may be rounded to either side


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_go_with_view_0(backend):
    """The CPU path gives the reference's bytes; DALI rounds coordinates to float32, so edges may differ by a pixel."""
    count = 12
    jpegs, matrices = [encode(picture(n)) for n in range(count)], drawn(VIEWS, count)
    vessels = [png(random_mask(n)) for n in range(count)]
    disc = [None if n % 3 == 1 else png(random_mask(100 + n, side=50 + n, channels=1)[..., 0]) for n in range(count)]
    request = DecodeRequest(jpegs, matrices, (disc, vessels))
    mask = decode_batch(backend, request, views=VIEWS, masks=(1, 3)).mask
    assert mask.dtype == torch.uint8 and mask.shape == (count, 4, 32, 32)
    for number in range(count):
        expected = masks_reference([disc[number], vessels[number]], (1, 3), matrices[0][number], 32)
        differs = (mask[number].numpy() != expected).mean()
        assert differs <= (0 if backend == "cpu" else 0.003), number
        if disc[number] is None:
            assert (mask[number, 0] == 255).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_lies_on_its_picture(backend):
    """A bright square in the picture and its mask stay on each other through crop, rotation and flip."""
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    image[20:40, 28:52], mask[20:40, 28:52] = 255, 1
    views = (ViewSpec(48, crop=(0.5, 1.0), rotation=30.0, flip=0.5),)
    request = DecodeRequest([encode(image)] * 16, drawn(views, 16), ([png(mask)] * 16,))
    decoded = decode_batch(backend, request, views=views, masks=(1,))
    inside, bright = decoded.mask[:, 0] == 1, decoded.views[0][:, 0] > 127
    assert 0.05 < inside.float().mean() < 0.5
    assert (inside != bright).float().mean() < 0.02
    outside = decoded.mask[:, 0] == 255
    assert outside.any() and (decoded.views[0][:, 0][outside] < 30).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_that_cannot_be_read_are_flagged(backend):
    good, jpeg = png(random_mask(0)), encode(picture(0))
    garbage = good.copy()
    garbage[45:-20] = 0x55
    palette = good.copy()
    palette[25] = 3
    pngs = [good, good[:-6], garbage, png(random_mask(0, channels=4)), palette, jpeg, np.empty(0, np.uint8), None, good]
    jpegs = [jpeg] * 8 + [jpeg[:-9]]
    decoded = decode_batch(backend, DecodeRequest(jpegs, (straight(9, 64),), (pngs,)), masks=(3,))
    assert decoded.bad.tolist() == [False, True, True, True, True, True, True, False, True]
    assert (decoded.views[0][torch.from_numpy(decoded.bad)] == 0).all()
    assert (decoded.mask[torch.from_numpy(decoded.bad)] == 255).all()
    assert np.array_equal(decoded.mask[0].permute(1, 2, 0).numpy(), random_mask(0))


def test_channels_of_a_png_keep_their_order():
    for channels in (1, 3, 4):
        mask = random_mask(1, 5, channels)
        assert np.array_equal(decode_mask(png(mask if channels > 1 else mask[..., 0]), channels), mask)


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
@pytest.mark.parametrize("stored", [64, 160])
def test_the_graph_of_a_gpu_holds_views_and_masks(monkeypatch, stored, pixels):
    monkeypatch.setattr(Pipeline, "build", python_half_of_build)
    spec = spec_for(views=VIEWS, masks=(1, 3), stored=stored, device=GPU, pixels=pixels)
    images = DALIImages(lambda: pytest.fail("nothing is decoded"), spec, Meters())
    operators = [
        (type(operator._op).__name__, operator._op.device, [node.device for node in operator.inputs])
        for operator in images._pipeline._ops
        if type(operator._op).__name__ not in ("ExternalSource", "Copy", "_CopyToGpu")
    ]
    names = [name for name, _, _ in operators]
    assert names.count("WarpAffine") == len(VIEWS) + 2
    assert [(device, inputs[0]) for name, device, inputs in operators if name == "Image"].count(("mixed", "cpu")) == 1
    assert [(device, inputs[0]) for name, device, inputs in operators if name == "Image"].count(("cpu", "cpu")) == 2
    for name, device, inputs in operators:
        if name in ("WarpAffine", "Resize"):
            assert device == "gpu" and inputs[0] == "gpu" and set(inputs[1:]) <= {"cpu"}, name
    assert {output.device for output in images._pipeline._graph_outputs} == {"gpu"}
    assert len(images._pipeline._graph_outputs) == len(VIEWS) + 2


# Draws


def test_crops_are_drawn_as_torchvision_draws_them():
    count = 20_000
    box = draw_crops(slice_of(count), (0.2, 0.9), seed=1, stream=0)
    left, top, width, height = box.T
    assert (box >= 0).all() and (left + width <= 1 + 1e-9).all() and (top + height <= 1 + 1e-9).all()
    area, ratio = width * height, width / height
    assert 0.2 <= area.min() < 0.21 and 0.88 < area.max() <= 0.9
    assert 0.75 <= ratio.min() < 0.76 and 1.32 < ratio.max() <= 4 / 3 + 1e-9
    assert abs(np.log(ratio).mean()) < 0.005
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    blank = torch.empty(3, 1000, 1000)
    theirs = np.array([RandomResizedCrop.get_params(blank, (0.2, 0.9), (3 / 4, 4 / 3)) for _ in range(5000)]) / 1000
    for ours, other in ((top, theirs[:, 0]), (left, theirs[:, 1]), (height, theirs[:, 2]), (width, theirs[:, 3])):
        for share in (0.1, 0.5, 0.9):
            assert abs(np.quantile(ours, share) - np.quantile(other, share)) < 0.02


def test_a_crop_that_never_fits_is_the_whole_picture():
    box = draw_crops(slice_of(2000), (0.98, 1.0), seed=0, stream=0)
    whole = (box == [0, 0, 1, 1]).all(1)
    assert 0 < whole.mean() < 1
    assert (box[:, 2:] <= 1).all()


def test_needed_sides_leave_no_view_enlarged():
    boxes = draw_crops(slice_of(500), (0.05, 1.0), seed=0, stream=0)
    angles = np.linspace(-180, 180, 500)
    sides = needed_side(warp_matrices(angles, angles > 3, 96, boxes), 96)
    narrow = boxes[:, 2:].min(1)
    assert (sides * narrow >= 96 - 0.1).all()
    assert (sides * narrow < 98).all()
    assert (needed_side(warp_matrices(angles, angles > 3, 224), 224) == 224).all()


def test_views_epochs_and_seeds_crop_differently():
    view = resolve_views((VIEWS[0],), size=32, rotation=0.0, flip=0.0)[0]

    def matrices(epoch=0, seed=0, number=0):
        return draw_matrices(slice_of(50, epoch), view, seed=seed, number=number)

    assert np.array_equal(matrices(), matrices())
    for other in (matrices(epoch=1), matrices(seed=1), matrices(number=1)):
        assert not (matrices() == other).all((1, 2)).any()
    first, second = (draw_crops(slice_of(2000), (0.2, 0.5), seed=0, stream=256 * number).T for number in range(2))
    assert np.abs(np.corrcoef(first, second)[:4, 4:]).max() < 0.08


# Through the loader


ONE = (ViewSpec(),)


def loader_for(path, *, views=ONE, batch=6, micro=6, rank=0, world=1, seed=3, **settings):
    config = DataConfig(**{"path": str(path), "image_size": 32, "threads": 1, "backend": "cpu", **settings})
    return Loader(
        open_dataset(config), config, seed=seed, batch=batch, micro_batch=micro, rank=rank, world=world, device=CPU,
        views=views,
    )  # fmt: skip


# SHA-256 of the pictures, keys, epochs and positions of two epochs, by the code before there were views.
GOLDEN = {
    (32, "cpu", "uint8"): "9ff67352a3c0bfff517edf888e91af1014a23da17deab78b2767143f2444b9dd",
    (32, "cpu", "float32"): "c582fb81fe8964ddbc537f65ab46eef665968f0a0204f04509e3ddbcc128184a",
    (32, "dali", "uint8"): "5ffa5d8d2de09695e2892ee9d7c20bd215344170caa35ad664a13cca25693d4a",
    (32, "dali", "float32"): "b46042d6db8ad5b7f75e38f8b7e69a4579dd8cf286103b9615026dbb7a47cadc",
    (96, "cpu", "uint8"): "be0aef57c8018d0601930a720a5e81d8b45d638effdd7d010dd864eedefeeeea",
    (96, "cpu", "float32"): "f99411065fb571f5bd6cb98c213fd33eecbf0bc2be70cd244925e181508ad05a",
    (96, "dali", "uint8"): "d5bfb39f2c0e313d533ced01699fd407a00364ea866614a784d742475bc79cd8",
    (96, "dali", "float32"): "15655107f0882a4e5e11e3b62684812764f21efdc93e80eb2da102c8ba1dffeb",
}


@pytest.mark.skipif("avx2" not in Path("/proc/cpuinfo").read_text(), reason="recorded with the AVX2 kernels")
@pytest.mark.parametrize(("stored", "backend", "pixels"), GOLDEN)
@pytest.mark.parametrize("extra", [(), (ViewSpec(24, crop=(0.2, 0.5)),)])
def test_the_first_plain_view_has_the_bytes_of_before_there_were_views(tmp_path, stored, backend, pixels, extra):
    if extra and stored > 32:
        pytest.skip("a second view may raise the decode scale, so bytes differ by rounding")
    path = write_dataset(tmp_path / "ds", size=stored)
    digest = hashlib.sha256()
    for batch in loader_for(path, views=(ViewSpec(), *extra), backend=backend, pixels=pixels).batches(0, 48):
        digest.update(batch.views[0].contiguous().numpy().tobytes())
        digest.update(repr((batch.keys, batch.epochs, batch.end)).encode())
    assert digest.hexdigest() == GOLDEN[stored, backend, pixels]


SIMCLR = Photometric(0.4, 0.4, 0.4, 0.1, jitter=0.8, grey=0.2, blur=0.5)
TWO = (ViewSpec(crop=(0.3, 1.0), photometric=SIMCLR), ViewSpec(24, crop=(0.2, 0.5), photometric=Photometric()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_hold_all_views_and_their_parameters(dataset, backend):
    batch = next(loader_for(dataset, views=TWO, backend=backend).batches(0))
    assert [tuple(view.shape) for view in batch.views] == [(6, 3, 32, 32), (6, 3, 24, 24)]
    assert batch.photometric[0].shape == (6, 7) and batch.photometric[0].dtype == torch.float32
    assert batch.photometric[1] is None  # a recipe that changes nothing
    assert batch.target is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_preview_is_plain_in_every_view(dataset, backend):
    preview = loader_for(dataset, views=TWO, backend=backend).preview(4)
    plain = loader_for(dataset, views=(ViewSpec(rotation=0.0, flip=0.0),), backend=backend).preview(4)
    assert torch.equal(preview.views[0], plain.views[0])
    assert preview.photometric == (None, None)
    assert preview.keys == plain.keys


@pytest.mark.parametrize("count", [0, 257])
def test_too_few_or_too_many_views_are_refused(dataset, count):
    with pytest.raises(UserError, match=rf"{count} views of a sample: an objective asks for 1 to 256"):
        loader_for(dataset, views=(ViewSpec(),) * count)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_part_has_the_shapes_of_its_views(tmp_path, backend):
    """More ranks than samples: a rank's batch of none still has all views."""
    images = open_backend(
        backend, lambda: DecodeRequest([], tuple(m[:0] for m in drawn(VIEWS, 1)), ([],)), views=VIEWS, masks=(3,)
    )
    decoded = images.run()
    images.close()
    assert [tuple(view.shape) for view in decoded.views] == [(0, 3, view.size, view.size) for view in VIEWS]
    assert tuple(decoded.mask.shape) == (0, 3, 32, 32)


def test_a_large_photograph_is_reduced_once_per_view(tmp_path):
    """The example of DecodeMemory: 512 pixels, decoded at 7/8 for a crop of half the side."""
    from mrmfast.data.images.decode_memory import DecodeMemory

    memory = DecodeMemory(2, 512, (224, 224))
    assert memory.decode(encode(picture(0, 512)), 5, (224, 448))
    numbers_and_sides = [(items[0], items[2]) for items in memory.items]
    assert numbers_and_sides == [(5, 224), (5, 448)]
    assert memory.items[0][1] != memory.items[1][1]
    reduced, whole = (next(memory.images(view))[1] for view in range(2))
    assert np.array_equal(reduced, cv2.resize(whole, (224, 224), interpolation=cv2.INTER_AREA))
