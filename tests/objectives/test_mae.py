"""What the paper says of MAE; ``test_official.py`` compares it with the published code's numbers."""

import pytest
import torch

from mrmfast.errors import UserError
from mrmfast.models.decoders import ImageDecoderConfig
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.base import StepInfo
from mrmfast.objectives.losses import patch_error
from mrmfast.objectives.mae import MAE, MAEConfig
from tests.helpers import official
from tests.helpers.objectives import as_batch, batch

IMAGE = official.image(1000, 0, (3, 3, 64, 64))
NOISE = official.positive(2000, 0, (3, 16))


def encoder(image=64, depth=2):
    return ImageEncoder("vit_tiny_patch16_224", image, depth, embed_dim=64, num_heads=4)


def small(**options):
    torch.manual_seed(0)
    return MAE(MAEConfig(decoder=ImageDecoderConfig(32, 1, 2), **options), encoder(), None)


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
    vit = encoder(16 * int(patches**0.5), 1)
    assert MAE(MAEConfig(mask_ratio=ratio, decoder=ImageDecoderConfig(32, 1, 2)), vit, None).visible == kept


def test_a_ratio_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match=r"objective.mask_ratio=0.99: leaves 0 of 16 patches visible"):
        small(mask_ratio=0.99)
