"""Moving averages and centres of MoCo v3 and AttMask, and what their masks hide."""

import math

import pytest
import torch

from mrmfast.errors import UserError
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.attmask import AttMask, AttMaskConfig, MaskConfig
from mrmfast.objectives.base import StepInfo
from mrmfast.objectives.centres import Centre
from mrmfast.objectives.mocov3 import MoCoV3, MoCoV3Config
from mrmfast.objectives.simmim import SimMIM, SimMIMConfig


def encoder(image=64):
    return ImageEncoder("vit_tiny_patch16_224", image, 1)


def test_equal_vectors_give_mocos_loss_of_a_guess():
    model = MoCoV3(MoCoV3Config(hidden=8, width=4), encoder(), None)
    same = torch.ones(16, 4)
    loss = 2 * model.contrast(same, same, slice(0, 16))
    assert loss.item() == pytest.approx(4 * 0.2 * math.log(16), rel=1e-6)


def test_the_average_moves_with_the_next_steps_momentum():
    """The published code moves it in the next step, before the keys."""
    model = MoCoV3(MoCoV3Config(hidden=8, width=4, momentum=0.9), encoder(), None)
    with torch.no_grad():
        model.projector[0].weight.add_(1)
    before = model.key_projector.module[0].weight.clone()
    model.after_step(StepInfo(0, step=4, total_steps=10))
    assert torch.allclose(model.key_projector.module[0].weight - before, torch.tensor(0.05), atol=1e-6)  # m(5/10) .95


@pytest.mark.parametrize(("ratio", "hidden"), [(0.1, 19), (0.3, 58), (0.5, 98)])
def test_the_largest_attention_is_hidden(ratio, hidden):
    model = AttMask(AttMaskConfig(mask=MaskConfig("high", (ratio, ratio), 1.0)), encoder(224), None)
    attention = torch.rand(3, 196, generator=torch.Generator().manual_seed(0))
    draws = model.draw(3, 1)
    masked = model.mask(attention, draws)
    assert masked.sum(1).tolist() == [hidden] * 3
    assert attention[masked].view(3, -1).amin(1).gt(attention[~masked].view(3, -1).amax(1)).all()


def test_hints_are_of_the_very_largest_and_an_image_can_stay_whole():
    settings = MaskConfig("hint", (0.5, 0.5), 0.5, 0.1)
    model = AttMask(AttMaskConfig(mask=settings), encoder(224), None)
    attention = torch.rand(40, 196, generator=torch.Generator().manual_seed(0))
    masked = model.mask(attention, model.draw(40, 1))
    whole = ~masked.any(1)
    assert 5 < whole.sum() < 35
    top = attention.argsort(1, descending=True)[:, :19]
    shown = (~masked.gather(1, top)).sum(1)
    assert shown[~whole].eq(int(0.1 * 0.5 * 196)).all()
    assert (masked.sum(1)[~whole] == 98 - 9).all()


def test_a_centre_averages_the_passes_of_its_step_alone():
    centre, step = Centre(2).bfloat16(), StepInfo(0, 3, 9)
    centre.collect(torch.full((4, 2), 100.0), StepInfo(0, 0, 1))  # a trial pass
    centre.collect(torch.full((4, 2), 1.0), step)
    centre.collect(torch.full((4, 7, 2), 3.0), step)
    assert centre.mean.tolist() == [0, 0]
    centre.update(0.9, step)
    assert centre.mean.dtype == torch.float32
    assert centre.mean.tolist() == pytest.approx([0.2, 0.2])
    centre.update(0.9, step)  # nothing collected since
    assert centre.mean.tolist() == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize(("cells", "masked"), [(7, 30), (6, 22), (5, 15)])
def test_simmim_rounds_the_masked_cells_up(cells, masked):
    assert SimMIM(SimMIMConfig(), encoder(32 * cells), None).masked_cells == masked


def test_a_cell_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"objective.cell=24: must be a multiple of the patch size 16"):
        SimMIM(SimMIMConfig(cell=24), encoder(), None)


def test_masked_pixels_do_not_reach_simmims_prediction():
    model, image = SimMIM(SimMIMConfig(), encoder(), None).eval(), torch.randn(1, 3, 64, 64)
    masked = model.mask(model.draw_noise(1, 0))
    changed = torch.where(model.as_pixels(masked), image + 1, image)
    with torch.no_grad():
        assert torch.equal(model.predict(image, masked), model.predict(changed, masked))
