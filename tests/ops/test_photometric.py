"""Changes of colour: against torchvision, against float64, on a GPU's tensors without a GPU."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms.v2 import functional as oracle

from mrmfast.batch import PHOTOMETRIC, Photometric, ViewSpec
from mrmfast.data.images.augment import draw_photometric
from mrmfast.data.sampling.sampler import Slice
from mrmfast.errors import UserError
from mrmfast.models.patch_embed import normalise
from mrmfast.ops import photometric
from mrmfast.ops.photometric import reference

ALL = Photometric(0.8, 0.8, 0.8, 0.5, jitter=1.0, grey=0.3, blur=0.6, solarise=0.4)


def views(count=16, size=40, seed=0):
    """Smooth colours, as well as saturated, grey, black and white images."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (count, 3, 7, 7), generator=generator).float()
    images = torch.nn.functional.interpolate(small, size, mode="bicubic").clamp(0, 255).round().to(torch.uint8)
    images[0], images[1] = 0, 255
    images[2] = images[2, :1]
    images[3] = torch.randint(0, 256, images[3].shape, generator=generator, dtype=torch.uint8)
    return images


def drawn(recipe=ALL, count=16, seed=0):
    sample = np.arange(count)
    piece = Slice(sample, np.zeros(count, np.int64), sample, count)
    return torch.from_numpy(draw_photometric(piece, recipe, seed=seed))


def parameters(count, **columns):
    """No change but in the columns named."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0}
    rows = torch.tensor([neutral.get(name, 0.0) for name in PHOTOMETRIC]).repeat(count, 1)
    for name, values in columns.items():
        rows[:, PHOTOMETRIC.index(name)] = torch.tensor(values)
    return rows


def by_torchvision(image, row, recipe):
    """One image through torchvision's functional operators, on floats in 0..1."""
    value = dict(zip(PHOTOMETRIC, row.tolist(), strict=True))
    x = image.float() / 255
    x = oracle.adjust_brightness(x, value["brightness"])
    x = oracle.adjust_contrast(x, value["contrast"])
    x = oracle.adjust_saturation(x, value["saturation"])
    x = oracle.adjust_hue(x, value["hue"])
    if value["grey"]:
        x = oracle.rgb_to_grayscale(x, num_output_channels=3)
    if value["blur"]:
        radius = int(np.ceil(3 * recipe.blur_sigma[1]))
        x = oracle.gaussian_blur(x, [2 * radius + 1] * 2, [value["blur"]] * 2)
    if value["solarise"]:
        x = oracle.solarize(x, recipe.solarise_threshold / 255)
    return (x * 255).round().clamp(0, 255)


def test_all_together_equal_torchvisions():
    images, rows = views(64), drawn(count=64)
    ours = photometric.apply(images, rows, ALL)
    theirs = torch.stack([by_torchvision(image, row, ALL) for image, row in zip(images, rows, strict=True)])
    difference = (ours.float() - theirs).abs()
    print(f"ours and torchvision: worst {difference.max():.0f}, mean {difference.mean():.5f} of 255")
    assert ours.dtype == torch.uint8 and ours.shape == images.shape
    assert difference.max() <= 2
    assert difference.mean() <= 0.01


@pytest.mark.parametrize(
    ("column", "values", "call"),
    [
        ("brightness", [0.2, 1.0, 1.8], oracle.adjust_brightness),
        ("contrast", [0.2, 1.0, 1.8], oracle.adjust_contrast),
        ("saturation", [0.0, 1.0, 1.8], oracle.adjust_saturation),
        ("hue", [-0.5, 0.13, 0.4], oracle.adjust_hue),
        ("grey", [1.0, 1.0, 1.0], lambda x, _: oracle.rgb_to_grayscale(x, num_output_channels=3)),
        ("blur", [0.1, 0.7, 2.0], lambda x, sigma: oracle.gaussian_blur(x, [13, 13], [sigma, sigma])),
        ("solarise", [1.0, 1.0, 1.0], lambda x, _: oracle.solarize(x, 128 / 255)),
    ],
)
def test_each_change_equals_torchvisions(column, values, call):
    images = views(6)[3:]
    ours = photometric.apply(images, parameters(3, **{column: values}), ALL).float()
    for image, result, value in zip(images, ours, values, strict=True):
        expected = (call(image.float() / 255, value) * 255).round()
        assert (result - expected).abs().max() <= 1, value
        assert (result - image.float()).abs().max() > 5 or value in (1.0, 0.1)


def test_no_change_changes_no_byte():
    images = views()
    assert torch.equal(photometric.apply(images, parameters(16), ALL), images)
    assert photometric.apply(images, None, ALL) is images
    assert photometric.apply(images, drawn(), None) is images


def test_solarise_has_its_threshold():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    recipe = Photometric(solarise=1.0, solarise_threshold=200)
    result = photometric.apply(images, parameters(2, solarise=[1.0, 0.0]), recipe)
    expected = torch.arange(256)
    expected[200:] = 255 - expected[200:]
    assert torch.equal(result[0, 1].flatten().long(), expected)
    assert torch.equal(result[1], images[1])


def test_floats_of_24_bits_suffice():
    """What another device rounds differently stays within 2/255: float32 against float64."""
    images, rows = views(64, seed=1), drawn(count=64, seed=1)
    single, double = (
        reference.photometric(images.to(dtype), rows.to(dtype), ALL) for dtype in (torch.float32, torch.float64)
    )
    jumps = (single - double).abs() > 0.01  # at the threshold of solarise alone
    print(f"float32 and float64: {jumps.sum()} of {jumps.numel()} pixels differ by more than 0.01 of 255")
    assert (single - double).abs().max() <= 2
    assert jumps.float().mean() <= 1e-4
    assert (single.round() - double.round()).abs().max() <= 2


def test_it_runs_on_a_gpus_tensors():
    with FakeTensorMode():
        images = torch.empty(4, 3, 32, 32, dtype=torch.uint8, device="cuda").to(memory_format=torch.channels_last)
        rows = torch.empty(4, len(PHOTOMETRIC), device="cuda")
        result = photometric.apply(images, rows, ALL)
        assert result.device.type == "cuda" and result.dtype == torch.uint8
        assert result.shape == images.shape and result.is_contiguous(memory_format=torch.channels_last)
        floats = photometric.apply(torch.empty(4, 3, 32, 32, device="cuda"), rows, ALL)
        assert floats.device.type == "cuda" and floats.dtype == torch.float32


def test_normalised_floats_change_as_bytes_do():
    images, rows = views(), drawn()
    floats = photometric.apply(normalise(images), rows, ALL)
    expected = normalise(photometric.apply(images, rows, ALL))
    assert (floats - expected).abs().max() <= 0.5 / (255 * 0.224) + 1e-5 + (1 / (255 * 0.224))


def test_samples_do_not_mix():
    images, rows = views(), drawn()
    whole = photometric.apply(images, rows, ALL)
    for number in range(16):
        alone = photometric.apply(images[number : number + 1], rows[number : number + 1], ALL)
        assert (alone[0].int() - whole[number].int()).abs().max() <= 1


def test_draws_have_their_ranges_and_probabilities():
    recipe = Photometric(0.4, 0.3, 0.2, 0.1, jitter=0.8, grey=0.2, blur=0.5, solarise=0.1, blur_sigma=(0.5, 1.5))
    rows = drawn(recipe, 20_000).double()
    column = dict(zip(PHOTOMETRIC, rows.unbind(1), strict=True))
    jittered = column["brightness"] != 1
    for name, strength in (("brightness", 0.4), ("contrast", 0.3), ("saturation", 0.2)):
        values = column[name][jittered]
        assert 1 - strength <= values.min() < 1 - 0.98 * strength and 1 + 0.98 * strength < values.max() <= 1 + strength
        assert torch.equal(column[name] != 1, jittered)
    assert abs(jittered.double().mean() - 0.8) < 0.012
    assert column["hue"].abs().max() <= 0.1 and column["hue"].min() < -0.098
    for name, probability in (("grey", 0.2), ("solarise", 0.1), ("blur", 0.5)):
        assert abs((column[name] > 0).double().mean() - probability) < 0.015
    blurred = column["blur"][column["blur"] > 0]
    assert 0.5 <= blurred.min() < 0.51 and 1.49 < blurred.max() <= 1.5
    # Independent of each other: no pair of columns goes together.
    correlation = torch.corrcoef(rows[jittered].T).fill_diagonal_(0).abs().max()
    assert correlation < 0.03


def test_views_epochs_and_seeds_draw_differently():
    sample, zero = np.arange(50), np.zeros(50, np.int64)

    def rows(epoch=0, seed=0, number=0):
        return draw_photometric(Slice(sample, zero + epoch, sample, 50), ALL, seed=seed, number=number)[:, 0]

    first = rows()
    assert np.array_equal(first, rows())
    for other in (rows(epoch=1), rows(seed=1), rows(number=1)):
        assert (first == other).mean() < 0.05


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"hue": 0.6}, "photometric.hue=0.6: must be 0 to 0.5"),
        ({"jitter": -0.1}, "photometric.jitter=-0.1: must be 0 to 1"),
        ({"brightness": float("nan")}, "photometric.brightness=nan: must be 0 to inf"),
        ({"blur_sigma": (2.0, 1.0)}, r"photometric.blur_sigma=\(2.0, 1.0\): must be two positive numbers"),
    ],
)
def test_values_out_of_range_are_refused(wrong, line):
    with pytest.raises(UserError, match=line):
        Photometric(**wrong)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"size": 0}, "view.size=0"),
        ({"crop": (0.0, 1.0)}, "view.crop="),
        ({"crop": (0.5, 1.2)}, "view.crop="),
        ({"rotation": 200.0}, "view.rotation=200.0: must be 0 to 180"),
        ({"flip": 2.0}, "view.flip=2.0: must be 0 to 1"),
    ],
)
def test_views_out_of_range_are_refused(wrong, line):
    with pytest.raises(UserError, match=line):
        ViewSpec(**wrong)
