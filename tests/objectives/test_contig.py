"""ContIG: what the loss compares, and who takes part; ``test_official.py`` has the published code's numbers."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.contig import ContIG, ContIGConfig, GenomeProjection, contig_loss
from mrmfast.training.optimiser import OptimiserConfig, build_optimiser
from tests.helpers.objectives import IMAGE, SPEC, as_batch, batch


def vectors(count, seed=0):
    return torch.randn(2, count, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_it_is_two_cross_entropies_and_equal_vectors_give_a_guess():
    image, genome = vectors(6)
    everyone, own = torch.ones(6, dtype=torch.bool), torch.arange(6)
    logits = normalize(image, dim=1) @ normalize(genome, dim=1).T / 0.1
    both = 0.75 * cross_entropy(logits, own) + 0.25 * cross_entropy(logits.T, own)
    assert contig_loss(image, genome, 0.1, 0.75, everyone).item() == pytest.approx(both.item(), rel=1e-12)
    same = torch.ones(6, 8, dtype=torch.float64)
    assert contig_loss(same, same, 0.1, 0.75, everyone).item() == pytest.approx(math.log(6), rel=1e-12)


def test_missing_rows_are_neither_rows_nor_candidates_and_get_no_gradient():
    image, genome = vectors(6).requires_grad_().unbind(0)
    image.retain_grad()
    present = torch.tensor([True, False, True, True, False, True])
    loss = contig_loss(image, genome, 0.1, 0.75, present)
    alone = contig_loss(image[present], genome[present], 0.1, 0.75, torch.ones(4, dtype=torch.bool))
    assert loss.item() == pytest.approx(alone.item(), rel=1e-12)
    loss.backward()
    assert not image.grad[~present].any()
    assert image.grad[present].any()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_rows_give_exactly_zero_and_finite_gradients(count):
    image, genome = vectors(4).requires_grad_().unbind(0)
    image.retain_grad()
    loss = contig_loss(image, genome, 0.1, 0.75, torch.arange(4) < count)
    loss.backward()
    assert loss.item() == 0
    assert not image.grad.any()


def test_the_genome_network_is_linear_relu_batchnorm():
    """H1 by hand; missing rows, zeros, count in the statistics."""
    torch.manual_seed(0)
    network = GenomeProjection(5, ContIGConfig(hidden=6, width=4, genome_layers=(7,))).double()
    x = torch.cat([torch.randn(4, 5, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)])
    linear, projection = network.network[0], network.projection
    hidden = (x @ linear.weight.T + linear.bias).clamp(min=0)
    normed = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    expected = (normed @ projection[0].weight.T + projection[0].bias).clamp(min=0) @ projection[2].weight.T
    assert torch.allclose(network(x), expected + projection[2].bias, rtol=1e-12)
    assert not torch.allclose(network(x)[:4], network(x[:4]))


def test_the_published_form_decays_everything():
    genome = GenomeInput(SPEC, layers=0, alpha_dropout=0.0)
    for mode, free in (("same_settings", True), ("official", False)):
        model = ContIG(ContIGConfig(mode=mode, hidden=8), ImageEncoder("vit_tiny_patch16_224", IMAGE, 1), genome)
        groups = build_optimiser(model, OptimiserConfig(weight_decay=0.1), torch.device("cpu")).param_groups
        assert any(group["params"] for group in groups if group["weight_decay"] == 0) == free


def test_a_modality_that_nobody_has_keeps_its_weight_and_its_values_do_not_matter():
    torch.manual_seed(0)
    genome = GenomeInput(SPEC, layers=0, alpha_dropout=0.0)
    model = ContIG(ContIGConfig(hidden=8, width=4), ImageEncoder("vit_tiny_patch16_224", IMAGE, 1), genome)
    image, packed, present = batch(4)
    present[:, 1] = False
    features = model.encoder(image)[:, 0]
    x, _ = model.reader(packed, present)
    snps, scores, burden = model.contrast(features, x, present)
    assert scores.item() == 0
    loss = model.compute_loss(as_batch(image, packed, present), None).loss
    assert loss.item() == pytest.approx((snps + burden).item() / 3, rel=1e-6)
    changed = (packed[0], packed[1] + 1, packed[2])
    assert model.compute_loss(as_batch(image, changed, present), None).loss.item() == loss.item()
