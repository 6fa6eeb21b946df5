"""Encoders, decoders, export."""

import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file

from mrmfast.batch import PIXEL_MEAN, PIXEL_STD
from mrmfast.errors import UserError
from mrmfast.models.export import ExportRecipe, export_encoder, load_encoder
from mrmfast.models.genome_encoder import PairedAlphaDropout
from mrmfast.models.grouped_linear import GroupedLinear, GroupedLinearBack
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.models.patch_embed import denormalise, normalise, patches_as_image, patchify
from tests.helpers.common import ROOT
from tests.helpers.objectives import build_mrm

GROUPS = (3, 300, 1, 513, 256)


def plain_recipe(encoder):
    return ExportRecipe(encoder.arch, encoder.arguments)


def test_pixels_are_normalised_as_timms_encoders_expect():
    assert timm.data.IMAGENET_DEFAULT_MEAN == PIXEL_MEAN
    assert timm.data.IMAGENET_DEFAULT_STD == PIXEL_STD


@pytest.mark.parametrize("tile", [1, 7, 256, 1000])
def test_grouped_product_equals_a_loop_of_linears(tile):
    torch.manual_seed(0)
    grouped = GroupedLinear(GROUPS, 8, tile).double()
    torch.nn.init.normal_(grouped.bias)
    x = torch.randn(4, sum(GROUPS), dtype=torch.float64, requires_grad=True)
    weights = _weight_per_group(grouped)
    expected = torch.stack([part @ w for part, w in zip(x.split(GROUPS, 1), weights, strict=True)], 1) + grouped.bias
    got = grouped(x)
    assert torch.allclose(got, expected, atol=1e-12)
    upstream = torch.randn_like(got)
    (from_got,) = torch.autograd.grad(got, x, upstream, retain_graph=True)
    (from_expected,) = torch.autograd.grad(expected, x, upstream)
    assert torch.allclose(from_got, from_expected, atol=1e-12)


@pytest.mark.parametrize("tile", [1, 7, 256])
def test_grouped_product_back_equals_a_loop_of_linears(tile):
    torch.manual_seed(0)
    grouped = GroupedLinearBack(GROUPS, 8, tile).double()
    torch.nn.init.normal_(grouped.bias)
    tokens = torch.randn(4, len(GROUPS), 8, dtype=torch.float64)
    weights = _weight_per_group(grouped)
    expected = torch.cat([tokens[:, g] @ w.T for g, w in enumerate(weights)], 1) + grouped.bias
    assert torch.allclose(grouped(tokens), expected, atol=1e-12)


def _weight_per_group(grouped):
    """Whole weight matrices (n_g, D), put together from tiles by their own bookkeeping."""
    flat = grouped.weight.new_zeros(sum(GROUPS) + 1, grouped.weight.shape[-1])
    flat[grouped.feature_of_slot.flatten()] = grouped.weight.detach().flatten(0, 1)
    return flat[:-1].split(GROUPS)


def test_grouped_weights_start_lecun_normal_and_padding_stays_zero():
    torch.manual_seed(0)
    grouped = GroupedLinear((1000, 10), 64)
    assert grouped.weight[:3].std().item() == pytest.approx(1000**-0.5, rel=0.05)
    grouped(torch.randn(5, 1010)).square().sum().backward()
    padding = grouped.feature_of_slot == 1010
    assert padding.any()
    assert (grouped.weight.detach()[padding] == 0).all()
    assert (grouped.weight.grad[padding] == 0).all()


def test_patches_are_in_maes_order_and_invertible():
    image = torch.randn(2, 3, 32, 32)
    patches = patchify(image, 8)
    assert torch.equal(patches_as_image(patches, 8).flatten(4, 5).flatten(2, 3), image)
    # (row, column, channel) inside a patch; patches row by row.
    assert patches[1, 5, (3 * 8 + 2) * 3 + 1] == image[1, 1, 8 + 3, 8 + 2]


def test_normalise_round_trip():
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(denormalise(normalise(image)), image)


def test_vit_base_export_is_timms_own_model(tmp_path):
    """Issue: vit_base_patch16_224 loads the export strictly, features equal to 1e-5."""
    torch.manual_seed(0)
    encoder = ImageEncoder("vit_base_patch16_224", 224).eval()
    export_encoder(tmp_path / "encoder.safetensors", dict(encoder.named_parameters()), plain_recipe(encoder))
    stock = timm.create_model("vit_base_patch16_224", num_classes=0)
    stock.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        ours, theirs = encoder(image), stock.eval().forward_features(image)
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("residual", ["all", "cross", "none"])
def test_load_encoder_computes_the_same_features(tmp_path, residual):
    model = build_mrm({"residual": residual}, genome=None, image=64).eval()
    path = tmp_path / "encoder.safetensors"
    export_encoder(path, dict(model.encoder.named_parameters()), model.export_recipe())
    loaded, image = load_encoder(path).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (model.image_features(image) - loaded.forward_features(image)).abs().max() <= 1e-5


def test_evaluation_sees_the_whole_image_as_training_does(tmp_path):
    """timm's own 0.9 of this architecture would resize to 71 pixels and cut the rim."""
    encoder = ImageEncoder("vit_tiny_patch16_224", 64, depth=1)
    export_encoder(tmp_path / "encoder.safetensors", dict(encoder.named_parameters()), plain_recipe(encoder))
    data = timm.data.resolve_model_data_config(load_encoder(tmp_path / "encoder.safetensors"))
    assert data["crop_pct"] == 1.0
    resize, crop = timm.data.create_transform(**data).transforms[:2]
    assert resize.size == 64 and tuple(crop.size) == (64, 64)


def test_load_encoder_registers_the_models_of_this_package(tmp_path):
    """In a process that has imported no objective."""
    model = build_mrm({"residual": "none"}, genome=None)
    path = tmp_path / "encoder.safetensors"
    export_encoder(path, dict(model.encoder.named_parameters()), model.export_recipe())
    script = (
        f"from mrmfast.models.export import load_encoder; print(type(load_encoder({str(path)!r}).blocks[0]).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "_LiteralBlock"


@pytest.mark.parametrize("residual", ["all", "none"])
def test_load_encoder_brings_the_normalisation_of_training(tmp_path, residual):
    model = build_mrm({"residual": residual}, genome=None, image=64)
    path = tmp_path / "encoder.safetensors"
    export_encoder(path, dict(model.encoder.named_parameters()), model.export_recipe())
    settings = timm.data.resolve_model_data_config(load_encoder(path))
    assert (settings["mean"], settings["std"], settings["input_size"]) == (PIXEL_MEAN, PIXEL_STD, (3, 64, 64))


def test_load_encoder_names_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"none.json: no such file"):
        load_encoder(tmp_path / "none.safetensors")
    encoder, path = ImageEncoder("vit_tiny_patch16_224", 64), tmp_path / "encoder.safetensors"
    export_encoder(path, dict(encoder.named_parameters()), plain_recipe(encoder))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not an exported encoder"):
        load_encoder(path)
    path.with_suffix(".json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"encoder.json: not the recipe of an encoder"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("resnet18", 224, "model.arch=resnet18"),
        ("no_such_model", 224, "model.arch='no_such_model'"),
        ("vit_base_patch16_clip_224", 224, "not a plain ViT"),
        ("deit3_small_patch16_224", 224, "not a plain ViT"),
        ("test_vit", 160, "not a plain ViT"),
        ("vit_tiny_patch16_224", 100, "data.image_size=100"),
    ],
)
def test_impossible_encoders_are_explained(arch, size, message):
    with pytest.raises(UserError) as caught:
        ImageEncoder(arch, size)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_relation_blocks_than_blocks_are_explained():
    with pytest.raises(UserError, match=r"objective.mask.blocks=13: .* has 12 blocks"):
        build_mrm({"blocks": 13})


def test_an_encoder_of_some_patches_sees_those_alone():
    torch.manual_seed(0)
    encoder = ImageEncoder("vit_tiny_patch16_224", 64, depth=2).eval()
    torch.nn.init.normal_(encoder.tokens.cls_token)
    torch.nn.init.normal_(encoder.tokens.pos_embed)
    image = torch.randn(2, 3, 64, 64)
    kept = torch.tensor([[3, 0, 15], [7, 8, 1]])
    with torch.no_grad():
        whole, some = encoder.tokens(image), encoder.tokens(image, kept)
        for row in range(2):
            torch.testing.assert_close(some[row], whole[row, [0, *(kept[row] + 1)]])
        changed = image.clone()
        changed[0, :, 16:32, :16] += 1.0  # patch 4, which is not kept
        assert torch.equal(encoder(image, kept), encoder(changed, kept))


def test_paired_dropout_drops_the_same_units_and_keeps_mean_and_variance():
    torch.manual_seed(0)
    dropout = PairedAlphaDropout(0.1)
    x = torch.nn.functional.selu(torch.randn(400, 5, 64))
    once = dropout(torch.cat([x, x]), copies=2)
    assert torch.equal(once[:400], once[400:])
    assert not torch.equal(dropout(x), dropout(x))
    assert once[:400].mean().item() == pytest.approx(x.mean().item(), abs=0.02)
    assert once[:400].std().item() == pytest.approx(x.std().item(), rel=0.02)
    # torch's own, on average: the same share of units at the same value.
    theirs = torch.nn.AlphaDropout(0.1)(x)
    assert once.min().item() == pytest.approx(theirs.min().item(), abs=1e-4)
    assert (once[:400] == once.min()).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropout.eval()(x), x)
