"""M3AE: masks, partners, unknown tokens; ``test_official.py`` has the published code's numbers."""

import math

import pytest
import torch

from mrmfast.batch import ModalitySpec
from mrmfast.errors import UserError
from mrmfast.models.decoders import ImageDecoderConfig
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.models.patch_embed import normalise
from mrmfast.objectives.base import StepInfo
from mrmfast.objectives.genome import genome_errors
from mrmfast.objectives.m3ae import M3AE, FusionConfig, M3AEConfig
from tests.helpers.objectives import IMAGE, SPEC, as_batch, batch


def build(**options):
    torch.manual_seed(0)
    fusion, decoder = FusionConfig(layers=2, width=32, heads=2, dropout=0.0), ImageDecoderConfig(32, 1, 2)
    config = M3AEConfig(tap=1, fusion=fusion, decoder=decoder, **options)
    genome = GenomeInput(SPEC, layers=1, alpha_dropout=0.0)
    return M3AE(config, ImageEncoder("vit_tiny_patch16_224", IMAGE, 1), genome)


@pytest.mark.parametrize("samples", [2, 5, 16])
def test_half_of_the_samples_get_another_image(samples):
    model = build()
    for seed in range(20):
        partners = model.draw(samples, seed, torch.device("cpu")).partners_B
        assert (partners != torch.arange(samples)).sum() == samples - samples // 2
        assert set(partners.tolist()) <= set(range(samples))


def test_a_share_of_the_known_tokens_is_masked_and_at_least_one():
    model, noise = build(), torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    observed = torch.ones(3, 18, dtype=torch.bool)
    observed[1, 4:] = False  # one token is known
    observed[2] = False
    genome = torch.zeros(3, 18), observed
    assert model.stream.choose_masked(genome, noise, 0.15).sum(1).tolist() == [1, 1, 0]
    assert model.stream.choose_masked(genome, noise, 0.5).sum(1).tolist() == [2, 1, 0]
    assert model.stream.choose_masked(genome, noise, 0.15)[1].tolist() == [True, False, False, False, False]


def test_unknown_tokens_change_nothing_and_carry_no_loss():
    model, (image, packed, present) = build(), batch(4)
    present[:, 1] = False
    present[3] = False
    info = StepInfo(1)
    first = model.compute_loss(as_batch(image, packed, present), info)
    x, observed = model.reader(packed, present)
    known = model.stream.known((x, observed))[:, 1:].repeat_interleave(torch.tensor(SPEC.groups), 1)
    filled = torch.where(known, x, 7.0)
    model.reader.forward = lambda packed, present: (filled, observed)
    second = model.compute_loss(as_batch(image, packed, present), info)
    assert second.loss.item() == pytest.approx(first.loss.item(), rel=1e-6)
    # A participant without genetics takes no part in matching: another image for it changes nothing.
    genome, whole = model.reader(packed, present), model.encoder(image)
    partners = torch.arange(4)
    before = model.matching_term(genome, whole, partners)
    after = model.matching_term(genome, whole[torch.tensor([0, 1, 2, 0])], torch.tensor([0, 1, 2, 0]))
    assert after.item() == pytest.approx(before.item(), rel=1e-6)


def test_nothing_of_what_is_masked_reaches_its_prediction():
    model, (image, packed, present) = build().eval(), batch(3)
    genome, noise = model.reader(packed, present), model.draw(3, 0, torch.device("cpu"))
    predicted, masked = model.predict_image(genome, image, noise.patches_BN)
    grid = masked.unflatten(1, (2, 2)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    inverted = torch.where(grid[:, None], 255 - image, image)
    assert torch.equal(model.predict_image(genome, inverted, noise.patches_BN)[0], predicted)
    chosen = model.stream.choose_masked(genome, noise.tokens_BM, 0.15)
    values = genome[0] + chosen.repeat_interleave(torch.tensor(SPEC.groups), 1)
    assert torch.equal(model.stream((values, genome[1]), chosen), model.stream(genome, chosen))
    assert not torch.equal(model.stream((values, genome[1])), model.stream(genome))


def test_each_kind_of_feature_has_its_own_loss():
    """By hand: cross-entropy of a genotype, of a bit, squared error of a score; nothing where nothing was observed."""
    modalities = [ModalitySpec("a", "genotype", 2), ModalitySpec("b", "binary", 1), ModalitySpec("c", "float", 2)]
    predicted = torch.tensor([[0.0, 1.0, 2.0, 5.0, 5.0, 5.0, 0.5, 3.0, 1.0]], dtype=torch.float64)
    x, observed = torch.tensor([[2.0, 1.3, 1.0, 1.0, 0.0]]), torch.tensor([[True, False, True, True, True]])
    snps, bits, scores = genome_errors(predicted, x, observed, modalities)
    assert snps[0].tolist() == pytest.approx([math.log(sum(math.exp(k - 2) for k in range(3))), 0])
    assert bits.item() == pytest.approx(math.log1p(math.exp(-0.5)))
    assert scores[0].tolist() == [4, 1]


def test_the_published_encoder_takes_bytes_as_it_takes_normalised_pixels():
    """Its patch embedding has no bias, into which the mean of the pixels would be folded."""
    design = M3AE.encoder_design(M3AEConfig(mode="official"))
    encoder, (image, _, _) = ImageEncoder("vit_tiny_patch16_224", IMAGE, 1, design), batch(2)
    assert encoder.tokens.patch_embed.proj.bias is None
    with torch.no_grad():
        assert torch.allclose(encoder(image), encoder(normalise(image)), atol=1e-4)


def test_the_decoder_taps_an_existing_layer():
    with pytest.raises(UserError, match="tap=7: there are 6 fusion layers"):
        M3AEConfig(tap=7)
