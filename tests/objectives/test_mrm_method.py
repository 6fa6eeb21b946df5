"""MRM does what docs/methods/mrm.md says."""

import pytest
import torch

from mrmfast.models.patch_embed import normalise
from mrmfast.objectives.mrm.matching import draw_pairs, relation_matching
from mrmfast.objectives.mrm.relation import Branches
from tests.helpers.objectives import batch, build_mrm, loss_of


@pytest.mark.parametrize(("genome_from", "leaks"), [("both", True), ("image", False)])
def test_whether_the_genome_reaches_its_own_prediction(genome_from, leaks):
    model = build_mrm(reconstruct={"genome_from": genome_from}).eval()
    predicted = []
    model.genome_decoder.register_forward_hook(lambda module, inputs, output: predicted.append(output))
    images, packed, present = batch()
    loss_of(model, images, packed, present)
    loss_of(model, images, tuple(part.roll(1, 0) for part in packed), present)
    assert torch.equal(*predicted) != leaks


def test_the_genome_loss_teaches_the_exported_encoder():
    model = build_mrm(reconstruct={"genome_from": "image"}).eval()
    given = []
    model.genome_decoder.register_forward_hook(lambda module, inputs, output: given.append(inputs))
    loss_of(model, *batch())
    ((genome, image),) = given
    assert not genome.any()
    assert image.requires_grad
    torch.testing.assert_close(image, model.encoder(batch()[0]))


@pytest.mark.parametrize("residual", ["all", "cross", "none"])
def test_without_masking_the_branches_are_equal(residual):
    model = build_mrm({"tau_image": 0, "tau_genome": 0, "residual": residual})
    z_image, z_genome = model.encode(torch.randn(3, 3, 32, 32), torch.randn(3, 18))
    assert torch.equal(z_image.intact, z_image.masked)
    assert torch.equal(z_genome.intact, z_genome.masked)
    _, parts = loss_of(model, *batch())
    assert parts["self"] == 0
    assert parts["cross"] == 0


def test_masking_changes_only_the_masked_branch():
    image, genome = torch.randn(3, 3, 32, 32), torch.randn(3, 18)
    unmasked = build_mrm({"tau_image": 0, "tau_genome": 0}).encode(image, genome)
    masked = build_mrm({"tau_image": 0.75, "tau_genome": 0.5}).encode(image, genome)
    for plain, other in zip(unmasked, masked, strict=True):
        assert torch.allclose(plain.intact, other.intact, atol=1e-5)
        assert (plain.masked - other.masked).abs().max() > 1e-3


def test_the_intact_genome_free_branch_is_the_exported_encoder():
    model = build_mrm(genome=None)
    image = torch.randn(3, 3, 32, 32)
    z_image, z_genome = model.encode(image, None)
    assert z_genome is None
    assert (z_image.intact - model.image_features(image)).abs().max() <= 1e-5


def test_image_only_has_no_genome_side():
    model = build_mrm(genome=None)
    images, _, _ = batch()
    loss, parts = loss_of(model, images, (), torch.ones(6, 0, dtype=torch.bool))
    assert set(parts) == {"image", "self"}
    assert not any("genome" in name or "cross" in name for name, _ in model.named_parameters())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_cross_relations_carry_the_genome_into_the_image_and_back():
    model = build_mrm()
    image, genome = torch.randn(2, 3, 32, 32), torch.randn(2, 18)
    z_image, z_genome = model.encode(image, genome)
    other_image, _ = model.encode(image, genome + 1)
    _, other_genome = model.encode(image + 1, genome)
    assert (z_image.intact - other_image.intact).abs().max() > 1e-4
    assert (z_genome.intact - other_genome.intact).abs().max() > 1e-4


def test_missing_features_are_filled_and_carry_no_loss():
    model = build_mrm()
    images, (snps, pgs, burden), present = batch()
    pgs = pgs.clone()
    pgs[:, 1] = torch.nan
    present = present.clone()
    present[2, 2] = False
    x, observed = model.unpack((snps, pgs, burden), present)
    assert not observed[:, 10].any()
    assert (x[:, 10] == 1.0).all()
    assert not observed[2, 13:].any()
    bias = model.genome_decoder.head.bias
    loss_of(model, images, (snps, pgs, burden), present)[0].backward()
    assert bias.grad[10] == 0
    assert (bias.grad[:9] != 0).all()


def test_a_batch_without_any_genetics_has_no_genome_loss():
    model = build_mrm()
    images, packed, present = batch()
    _, parts = loss_of(model, images, packed, torch.zeros_like(present))
    assert parts["genome"] == 0


def test_matching_is_bounded_and_blind_to_the_order_of_pairs():
    torch.manual_seed(0)
    image, genome = (Branches.of(torch.randn(8, 16), torch.randn(8, 16)) for _ in range(2))
    parts = relation_matching(image, genome)
    assert all(0 <= value <= 4 for value in parts.values())
    order = torch.randperm(8)
    shuffled = relation_matching(*(Branches.of(b.intact[order], b.masked[order]) for b in (image, genome)))
    for name, value in parts.items():
        assert torch.allclose(value, shuffled[name])
    # Written out from docs/methods/mrm.md#relation-matching.
    cos = lambda a, b: torch.tensor([[torch.cosine_similarity(x, y, dim=0) for y in b] for x in a])  # noqa: E731
    l_self = sum(((cos(b.intact, b.intact) - cos(b.masked, b.masked)) ** 2).sum() for b in (image, genome)) / (2 * 64)
    l_cross = ((cos(image.intact, genome.intact) - cos(image.masked, genome.masked)) ** 2).sum() / 64
    assert torch.allclose(parts["self"], l_self)
    assert torch.allclose(parts["cross"], l_cross)
    opposite = Branches.of(image.intact, torch.cat([-image.intact[:4], image.intact[4:]]))
    assert relation_matching(opposite, genome)["self"] <= 4


def test_people_without_genetics_carry_no_genome_loss():
    """The fill values of a person who lacks all modalities are nobody's genome: none of its losses may move them."""
    torch.manual_seed(0)
    image, genome = (Branches.of(torch.randn(6, 16), torch.randn(6, 16)) for _ in range(2))
    known = torch.tensor([True, False, True, True, False, True])
    everyone = relation_matching(image, genome)
    assert all(
        torch.equal(value, everyone[name])
        for name, value in relation_matching(image, genome, known=torch.ones(6, dtype=torch.bool)).items()
    )
    some = relation_matching(image, genome, known=known)
    fewer = relation_matching(*(Branches.of(b.intact[known], b.masked[known]) for b in (image, genome)))
    images, images_fewer = (relation_matching(Branches.of(*(x[w] for x in image.halves())), None)["self"]
                            for w in (torch.ones(6, dtype=torch.bool), known))  # fmt: skip
    torch.testing.assert_close(some["cross"], fewer["cross"])
    torch.testing.assert_close(some["self"] - images, fewer["self"] - images_fewer)
    nobody = relation_matching(image, genome, known=torch.zeros(6, dtype=torch.bool))
    assert nobody["cross"] == 0
    assert torch.equal(nobody["self"], images)


def test_a_batch_with_people_without_genetics_matches_the_others_alone():
    model = build_mrm().eval()
    images, packed, present = batch()
    present = present.clone()
    present[[1, 4]] = False
    parts = loss_of(model, images, packed, present)[1]
    kept = [0, 2, 3, 5]
    alone = loss_of(model, images[kept], tuple(part[kept] for part in packed), present[kept])[1]
    torch.testing.assert_close(parts["cross"], alone["cross"])
    nobody = loss_of(model, images, packed, torch.zeros_like(present))[1]
    assert nobody["cross"] == 0


def test_pairs_are_a_function_of_the_seed():
    assert torch.equal(draw_pairs(20, 8, 5), draw_pairs(20, 8, 5))
    assert not torch.equal(draw_pairs(20, 8, 5), draw_pairs(20, 8, 6))
    assert len(draw_pairs(3, 8, 0)) == 3


def test_reconstruction_loss_is_the_mean_over_all_patches():
    model = build_mrm(genome=None)
    torch.nn.init.zeros_(model.image_decoder.head.weight)
    torch.nn.init.zeros_(model.image_decoder.head.bias)
    images, _, _ = batch()
    _, parts = loss_of(model, images, (), torch.ones(6, 0, dtype=torch.bool))
    assert torch.allclose(parts["image"], normalise(images).square().mean())


def test_bf16_parameters_compute_a_close_loss():
    model = build_mrm()
    exact = loss_of(model, *batch())[0]
    rough = loss_of(model.bfloat16(), *batch())[0]
    assert rough.dtype == torch.float32
    assert abs(rough - exact) / exact < 0.02


def test_dropout_is_no_relation_to_match():
    """Training mode, tau = 0: both branches drop the same units, so matching has nothing to see."""
    model = build_mrm({"tau_image": 0, "tau_genome": 0}, alpha_dropout=0.3)
    assert model.training
    _, parts = loss_of(model, *batch())
    assert parts["self"] == 0
    assert parts["cross"] == 0
    assert not torch.equal(*(loss_of(model, *batch(), seed=seed)[1]["image"] for seed in (0, 1)))  # it does drop
