"""MAE against the published code's numbers, and what the paper says of it."""

import pytest
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from mrmfast.errors import UserError
from mrmfast.models.decoders import ImageDecoderConfig
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.base import StepInfo
from mrmfast.objectives.losses import patch_error
from mrmfast.objectives.mae import MAE, MAEConfig, sincos_positions
from tests.helpers import official
from tests.helpers.objectives import as_batch, batch

CASE = official.cases("mae")["tiny"]
EXPECTED = CASE["expected"]
NAMES = {  # ours by the start of the published name
    "cls_token": "encoder.tokens.cls_token",
    "mask_token": "decoder.mask_token",
    "patch_embed.": "encoder.tokens.patch_embed.",
    "blocks.": "encoder.blocks.",
    "norm.": "encoder.norm.",
    "decoder_embed.": "decoder.embed.",
    "decoder_blocks.": "decoder.blocks.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "decoder.head.",
}


@register_model
def golden_mae_vit(pretrained=False, **kwargs):
    options = {name: value for name, value in kwargs.items() if name in ("img_size", "num_classes", "depth")}
    return VisionTransformer(patch_size=16, embed_dim=64, num_heads=4, **options)


def published(name):
    """A parameter's published name, None where the published model has no such parameter."""
    return next((new + name.removeprefix(ours) for new, ours in NAMES.items() if name.startswith(ours)), None)


@pytest.fixture
def model(request):
    config = MAEConfig(norm_pixels=request.param, decoder=ImageDecoderConfig(32, 2, 4))
    model = MAE(config, ImageEncoder("golden_mae_vit", 64, depth=2), None).double()
    official.fill(CASE, {published(name): p for name, p in model.named_parameters() if published(name)})
    # The published positions are fixed; float64, as the numbers are.
    positions = torch.nn.functional.pad(sincos_positions(4, 64), (0, 0, 1, 0))
    model.encoder.tokens.pos_embed.requires_grad_(False).copy_(positions)
    model.decoder.positions = torch.nn.functional.pad(sincos_positions(4, 32), (0, 0, 1, 0))
    return model


IMAGE = official.image(1000, CASE["phase"], CASE["inputs"]["image"]["shape"])
NOISE = official.positive(2000, CASE["phase"], CASE["inputs"]["noise"]["shape"])


@pytest.mark.parametrize(("model", "part"), [(False, "raw_pix"), (True, "norm_pix")], indirect=["model"])
def test_loss_and_gradients_equal_the_published_codes(model, part):
    assert official.off(IMAGE, CASE["inputs"]["image"]["stat"]) <= 1e-12
    assert official.off(NOISE, CASE["inputs"]["noise"]["stat"]) <= 1e-12
    loss = model.reconstruction_loss(IMAGE, NOISE)
    golden = EXPECTED[part]
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-9)
    assert all(abs(loss.item() - wrong) > 1e-4 for wrong in golden["wrong_variants"].values())
    loss.backward()
    norms = {published(name): p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    for name, norm in golden["grad_norms"].items():
        got = torch.stack(list(norms.values())).norm() if name.startswith("all") else norms[name]
        assert got.item() == pytest.approx(norm, rel=1e-9), name
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == EXPECTED["counts"]["trainable parameters"]


@pytest.mark.parametrize("model", [False], indirect=True)
def test_masking_positions_and_tokens_equal_the_published_codes(model):
    predicted, masked = model.predict(IMAGE, NOISE)
    assert masked.int().tolist() == EXPECTED["mask"]
    kept = NOISE.argsort(1)[:, : model.visible]
    assert kept.tolist() == EXPECTED["ids_keep_in_order"]
    latent = model.encoder(IMAGE, kept)
    assert latent.shape[1] == EXPECTED["counts"]["encoder tokens"]
    assert official.off(latent[0, 0], EXPECTED["latent_class_token_of_sample_0"]) <= 1e-9
    assert official.off(predicted, EXPECTED["pred"]) <= 1e-9
    assert official.off(model.encoder.tokens.pos_embed, EXPECTED["pos_embed"]) <= 1e-12
    assert official.off(model.decoder.positions, EXPECTED["decoder_pos_embed"]) <= 1e-12


def small(**options):
    torch.manual_seed(0)
    return MAE(MAEConfig(decoder=ImageDecoderConfig(32, 1, 2), **options), ImageEncoder("golden_mae_vit", 64, 2), None)


def test_the_encoder_runs_the_visible_tokens_alone():
    model, lengths = small(), []
    model.encoder.blocks[0].register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    model.compute_loss(as_batch(*batch(image=64)), StepInfo(3))
    assert lengths == [1 + 4]


def test_masked_pixels_do_not_reach_the_prediction():
    model = small().eval()
    with torch.no_grad():
        predicted, masked = model.predict(IMAGE.float(), NOISE.float())
        changed = IMAGE.float().clone()
        row, column = divmod(int(masked[0].nonzero()[0]), 4)
        changed[0, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] += 1
        assert torch.equal(model.predict(changed, NOISE.float())[0], predicted)


def test_a_zero_prediction_of_standardised_pixels_costs_their_variance():
    image = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    nothing = torch.zeros(4, 16, 768, dtype=torch.float64)
    masked = torch.rand(4, 16) < 0.75
    assert patch_error(nothing, image, 16, True, masked).item() == pytest.approx(767 / 768, abs=1e-4)


@pytest.mark.parametrize(("ratio", "patches", "kept"), [(0.75, 16, 4), (0.9, 100, 9)])
def test_the_number_of_visible_patches_is_rounded_as_published(ratio, patches, kept):
    encoder = ImageEncoder("golden_mae_vit", 16 * int(patches**0.5), 1)
    assert MAE(MAEConfig(mask_ratio=ratio, decoder=ImageDecoderConfig(32, 1, 2)), encoder, None).visible == kept


def test_a_ratio_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match=r"objective.mask_ratio=0.99: leaves 0 of 16 patches visible"):
        small(mask_ratio=0.99)
