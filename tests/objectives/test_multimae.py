"""MultiMAE: how many tokens are visible, and what is missing; ``test_official.py`` has the published code's numbers."""

import pytest
import torch

from mrmfast.errors import UserError
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.models.task_decoder import TaskDecoderConfig
from mrmfast.objectives.base import StepInfo
from mrmfast.objectives.losses import mean_over_samples
from mrmfast.objectives.multimae import MultiMAE, MultiMAEConfig
from mrmfast.objectives.multimae.masking import Draws, choose_visible, draw
from tests.helpers.objectives import IMAGE, SPEC, as_batch, batch


def build(**options):
    torch.manual_seed(0)
    config = MultiMAEConfig(decoder=TaskDecoderConfig(16, 1, 2), **options)
    genome = GenomeInput(SPEC, layers=0, alpha_dropout=0.0)
    return MultiMAE(config, ImageEncoder("vit_tiny_patch16_224", IMAGE, 1), genome)


def test_the_number_of_visible_tokens_is_exact_and_shares_decide_whose():
    draws = draw(200, [196, 22, 4, 22], [20.0, 2.0, 0.5, 2.0], seed=3)
    assert torch.allclose(draws.shares.sum(1), torch.ones(200, dtype=torch.float64))
    kept, restore = choose_visible(draws, 98)
    assert kept.shape == (200, 98)
    assert all(len(row.unique()) == 98 for row in kept)
    assert torch.equal((restore < 98).sum(1), torch.full((200,), 98))
    # A modality that can give what its share asks for gives just that, where all others can as well.
    asked = (draws.shares * 98).round()
    fits = (asked <= torch.tensor([196, 22, 4, 22])).all(1) & (asked.sum(1) == 98)
    assert fits.any()
    visible = torch.stack([part.sum(1) for part in (restore < 98).split([196, 22, 4, 22], 1)], 1)
    assert torch.equal(visible[fits], asked[fits].long())
    assert MultiMAEConfig().visible * 196 == 98


def test_alphas_are_in_proportion_to_tokens_but_for_the_published_form():
    """Few genome tokens are masked now and then; with one alpha for all nearly never."""
    masked = {}
    for mode in ("same_settings", "official"):
        model = build(mode=mode)
        model.tokens = {"image": 196, "snps": 8}
        _, restore = choose_visible(model.draw(400, 1), 98)
        masked[mode] = (restore[:, 196:] >= 98).any(1).float().mean().item()
    assert masked["official"] < 0.12  # 93 % of samples show them all
    assert masked["same_settings"] > 0.6


def test_tokens_that_a_sample_has_not_are_not_visible():
    counts = [6, 4]
    draws = draw(50, counts, [1.0, 8.0], seed=0)
    available = torch.ones(50, 10, dtype=torch.bool)
    available[:25, 6:] = False
    kept, _ = choose_visible(draws, 5, available)
    assert (kept[:25] < 6).all()
    assert (kept[25:] >= 6).any()


def test_what_is_missing_carries_no_loss_and_its_values_do_not_matter():
    model, (image, packed, present) = build(), batch(4)
    present[:, 0] = False
    first = model(*(((image,), packed, present, None)), 5, 0, 1)
    other = (packed[0] ^ 0x55, *packed[1:])
    second = model((image,), other, present, None, 5, 0, 1)
    assert first[1]["snps"].item() == 0
    assert first[0].item() == second[0].item()
    assert first[0].item() != model((image,), other, torch.ones_like(present), None, 5, 0, 1)[0].item()
    assert first[0].item() == pytest.approx(sum(part.item() for part in first[1].values()), rel=1e-6)


def test_masked_values_reach_no_prediction():
    """Pixels of masked patches and values of masked genome tokens change targets alone."""
    model, (image, packed, present) = build().eval(), batch(3)
    raw, available = model.read(as_batch(image, packed, present))
    kept, restore = choose_visible(model.draw(3, 2), model.kept, available)
    before = model.predict(model.encode(raw, kept), kept, restore)
    masked = dict(zip(model.tokens, (restore >= model.kept).split(list(model.tokens.values()), 1), strict=True))
    grid = masked["image"].unflatten(1, (2, 2)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    raw["image"] = torch.where(grid[:, None], 255 - raw["image"], raw["image"])
    groups = torch.tensor([2, 2])
    pgs = raw["pgs"][0] + masked["pgs"].repeat_interleave(groups, 1)
    raw["pgs"] = (pgs, raw["pgs"][1])
    after = model.predict(model.encode(raw, kept), kept, restore)
    assert masked["image"].any() and masked["pgs"].any()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_sample_with_nothing_masked_divides_safely():
    error = torch.ones(2, 3, requires_grad=True)
    counted = torch.tensor([[False] * 3, [True, True, False]])
    value = mean_over_samples(error, counted)
    value.backward()
    assert value.item() == 1
    assert error.grad.tolist() == [[0, 0, 0], [0.5, 0.5, 0]]
    assert mean_over_samples(error, torch.zeros(2, 3, dtype=torch.bool)).item() == 0


def test_ties_and_rounding_follow_the_published_code():
    """round(share x K) goes half to even; a token is asked for by the value of the permutation."""
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3]])  # argsort: 1, 3, 2, 0
    draws = Draws(torch.tensor([[0.5, 0.5]]), (noise, noise), torch.linspace(0.1, 0.8, 8)[None])
    kept, _ = choose_visible(draws, 5)  # asked: 2.5 -> 2 of each, one more by the final noise
    assert sorted(kept[0].tolist()) == [0, 1, 3, 4, 7]


def test_impossible_numbers_of_tokens_are_refused():
    with pytest.raises(UserError, match=r"objective\.visible=0\.1: leaves no token"):
        build(visible=0.1)
    with pytest.raises(UserError, match=r"objective\.visible=9: masks no token"):
        build(visible=9)


def test_without_genetics_the_image_is_the_only_modality():
    torch.manual_seed(0)
    config = MultiMAEConfig(decoder=TaskDecoderConfig(16, 1, 2))
    model = MultiMAE(config, ImageEncoder("vit_tiny_patch16_224", IMAGE, 1), None)
    image, _, _ = batch(2)
    output = model.compute_loss(as_batch(image, (), torch.empty(2, 0, dtype=torch.bool)), StepInfo(0))
    assert set(output.parts) == {"image", "norm_image"}
