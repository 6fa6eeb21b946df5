"""MRM against its literal reference, its switches and options, recomputation, compilation, relation maps."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from benchmarks.training.literal_mrm import literal_loss
from mrmfast.models.export import export_encoder, load_encoder
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.models.patch_embed import normalise, patchify
from mrmfast.objectives.losses import patch_error, patches_as_pixels
from mrmfast.objectives.mrm.matching import relation_matching
from mrmfast.objectives.mrm.reconstruction import genome_error
from mrmfast.objectives.mrm.relation import Branches
from mrmfast.objectives.mrm.relation_maps import relation_maps
from tests.helpers.objectives import SPEC, as_batch, batch, build_mrm, loss_of

NO_MASKS = {"self_relations": False, "cross_relations": False}


def gradients(model, loss):
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


def largest_difference(one, other):
    """Of two sets of gradients, relative to the norm of all: a key's bias has no gradient but rounding."""
    scale = torch.stack([value.norm() for value in other.values()]).norm() / len(other) ** 0.5
    return max(((one[name] - other[name]).norm() / scale).item() for name in other)


@pytest.mark.parametrize("residual", ["all", "cross", "none"])
@pytest.mark.parametrize(
    "mask", [{}, {"self_relations": False}, {"cross_relations": False}, NO_MASKS, {"tau_genome": 0.0}]
)
def test_loss_and_gradients_equal_the_literal_reference(residual, mask):
    # In float64: without residuals tokens start out nearly equal, and in float32 rounding decides what is masked.
    model = build_mrm({**mask, "residual": residual}).eval().double()
    loss, parts = loss_of(model, *batch())
    expected, expected_parts = literal_loss(model, *batch(), 0)
    assert torch.allclose(loss.double(), expected, rtol=1e-6)
    assert parts.keys() == expected_parts.keys()
    assert largest_difference(gradients(model, loss), gradients(model, expected)) <= 1e-6


def test_images_alone_equal_the_literal_reference():
    model = build_mrm(genome=None).eval().double()
    inputs = (batch()[0], (), torch.ones(6, 0, dtype=torch.bool), 0)
    (loss, _), (expected, _) = loss_of(model, *inputs), literal_loss(model, *inputs)
    assert torch.allclose(loss.double(), expected, rtol=1e-6)
    assert largest_difference(gradients(model, loss), gradients(model, expected)) <= 1e-6


@pytest.mark.parametrize("residual", ["all", "none"])
def test_each_mask_is_switched_by_itself(residual):
    image, genome = torch.randn(3, 3, 32, 32), torch.randn(3, 18)

    def masked(**switches):
        with torch.no_grad():
            return build_mrm({**switches, "residual": residual}).encode(image, genome)

    for z in masked(**NO_MASKS):
        assert torch.equal(z.intact, z.masked)
    every = [masked(), masked(self_relations=False), masked(cross_relations=False), masked(**NO_MASKS)]
    for number, one in enumerate(every):
        for other in every[number + 1 :]:
            for z, z_other in zip(one, other, strict=True):
                assert torch.allclose(z.intact, z_other.intact, atol=1e-5)
                assert (z.masked - z_other.masked).abs().max() > 1e-4


@pytest.mark.parametrize(("match_self", "match_cross"), [(False, False), (True, False), (False, True)])
def test_each_matching_loss_is_switched_by_itself(match_self, match_cross):
    _, every_part = loss_of(build_mrm(), *batch())
    match = {"self_relations": match_self, "cross_relations": match_cross}
    loss, parts = loss_of(build_mrm(match=match), *batch())
    assert ("self" in parts, "cross" in parts) == (match_self, match_cross)
    assert torch.allclose(loss, sum(parts.values()))
    assert all(torch.equal(value, every_part[name]) for name, value in parts.items())


@pytest.mark.parametrize("config", [{"mask": NO_MASKS}, {"match": {**NO_MASKS, "weight": 0.0}}])
@pytest.mark.parametrize("genome", [SPEC, None])
def test_gradients_reach_every_parameter_under_every_switch(config, genome):
    model = build_mrm(**config, genome=genome)
    images, packed, present = batch()
    inputs = (images, packed, present) if genome else (images, (), torch.ones(6, 0, dtype=torch.bool))
    loss_of(model, *inputs)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_lambda_weighs_matching():
    _, parts = loss_of(build_mrm(), *batch())
    loss, _ = loss_of(build_mrm(match={"weight": 3.0}), *batch())
    assert torch.allclose(loss, parts["image"] + parts["genome"] + 3 * (parts["self"] + parts["cross"]))


def test_stop_gradient_moves_the_masked_branch_alone():
    torch.manual_seed(0)
    leaves = [torch.randn(4, 8, requires_grad=True) for _ in range(4)]
    image, genome = Branches.of(*leaves[:2]), Branches.of(*leaves[2:])
    free, held = relation_matching(image, genome), relation_matching(image, genome, stop_gradient=True)
    for name in ("self", "cross"):
        assert torch.equal(free[name], held[name])
        grads = torch.autograd.grad(held[name], leaves, retain_graph=True)
        assert [bool((grad != 0).any()) for grad in grads] == [False, True, False, True]
        of_free = torch.autograd.grad(free[name], leaves, retain_graph=True)
        assert all(torch.equal(grads[i], of_free[i]) for i in (1, 3))
        assert all((of_free[i] != 0).any() for i in (0, 2))


@pytest.mark.parametrize("norm_pixels", [False, True])
def test_patch_error_equals_the_loss_on_copied_patches(norm_pixels):
    images = batch()[0]
    predicted = torch.randn(6, 4, 16 * 16 * 3, requires_grad=True)
    target = patchify(normalise(images), 16)
    if norm_pixels:  # MAE's own form
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = (predicted - target).square().mean()
    got = patch_error(predicted, images, 16, norm_pixels)
    assert torch.allclose(got, expected, rtol=1e-6)
    (grad,), (expected_grad,) = torch.autograd.grad(got, predicted), torch.autograd.grad(expected, predicted)
    assert torch.allclose(grad, expected_grad, rtol=1e-5, atol=1e-9)
    # What predicts the target perfectly draws the photograph.
    assert (patches_as_pixels(target, images, 16, norm_pixels).int() - images.int()).abs().max() <= 1


def test_norm_pixels_reaches_loss_and_figures():
    plain, standardised = (build_mrm(reconstruct={"norm_pixels": norm}) for norm in (False, True))
    assert loss_of(plain, *batch())[1]["image"] != loss_of(standardised, *batch())[1]["image"]
    predictions = [model.eval().figures(as_batch(*batch()))[0].columns[1].images for model in (plain, standardised)]
    assert not torch.equal(*predictions)


@pytest.mark.parametrize("bce", [False, True])
def test_genome_error_against_a_loop(bce):
    torch.manual_seed(0)
    kinds = (("snps", "genotype", 2), ("burden", "binary", 2), ("pgs", "float", 1))
    x = torch.tensor([[0.0, 2, 1, 0, 0.5], [1, 1, 0, 1, -2]])
    observed = torch.tensor([[True, True, True, False, True], [False, True, True, True, True]])
    predicted = torch.randn(2, 5, requires_grad=True)
    total = 0
    for row in range(2):
        for column in range(5):
            p, value = predicted[row, column], x[row, column]
            binary = bce and column in (2, 3)
            error = -(value * p.sigmoid().log() + (1 - value) * (1 - p.sigmoid()).log()) if binary else (p - value) ** 2
            total = total + error * observed[row, column]
    got = genome_error(predicted, x, observed, kinds, bce)
    assert torch.allclose(got, total / observed.sum())
    (grad,) = torch.autograd.grad(got, predicted)
    assert torch.allclose(grad, torch.autograd.grad(total / observed.sum(), predicted)[0])
    assert (grad[~observed] == 0).all()


def test_binary_cross_entropy_reaches_the_loss():
    plain, logits = (build_mrm(reconstruct={"binary_cross_entropy": bce}) for bce in (False, True))
    assert loss_of(plain, *batch())[1]["genome"] != loss_of(logits, *batch())[1]["genome"]
    # No burden, no difference.
    images, packed, present = batch()
    present[:, 2] = False
    losses = [loss_of(model, images, packed, present)[1]["genome"] for model in (plain, logits)]
    assert torch.allclose(*losses)


def test_uint8_pixels_equal_normalised_ones():
    torch.manual_seed(0)
    tokens = ImageEncoder("vit_tiny_patch16_224", 64).tokens
    torch.nn.init.normal_(tokens.patch_embed.proj.bias)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    parameters = (tokens.patch_embed.proj.weight, tokens.patch_embed.proj.bias)
    expected, got = tokens(normalise(images)), tokens(images)
    assert ((got - expected).norm() / expected.norm()).item() <= 1e-6
    upstream = torch.randn_like(expected)
    for grad, of_wanted in zip(
        torch.autograd.grad(got, parameters, upstream), torch.autograd.grad(expected, parameters, upstream), strict=True
    ):
        assert ((grad - of_wanted).norm() / of_wanted.norm()).item() <= 2e-6
    # bf16: hardly further from the truth than the usual way, which rounds pixels where this rounds weights once more.
    rough = tokens.bfloat16()
    ours, usual = rough(images).float(), rough(normalise(images).bfloat16()).float()
    assert (ours - expected).norm() <= 1.25 * (usual - expected).norm()


def test_recomputed_activations_give_equal_losses_and_gradients():
    results = []
    for enable in (False, True):
        model = build_mrm(alpha_dropout=0.2)
        model.set_activation_checkpointing(enable)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            loss, _ = loss_of(model, *batch(), seed=3)
        results.append((loss, gradients(model, loss), sum(saved)))
    (loss, grads, kept), (again, grads_again, kept_less) = results
    assert torch.equal(loss, again)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)
    assert kept_less < 0.5 * kept


def test_losses_compile_to_one_graph():
    model = build_mrm(depth=3, genome_layers=1).eval()
    images, packed, present = batch()
    arguments = (images, packed, present, torch.arange(6))
    compiled = torch.compile(model.losses, backend="eager", fullgraph=True)
    eager, traced = model.losses(*arguments), compiled(*arguments)
    for name, value in eager.items():
        assert torch.allclose(traced[name], value, rtol=1e-6, atol=1e-9), name
    sum(traced.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("residual", ["all", "none"])
def test_figure_2s_depth_exports_a_ten_block_vit(tmp_path, residual):
    model = build_mrm({"residual": residual}, depth=10, genome=None)
    assert len(model.encoder.blocks) == 10
    path = tmp_path / "encoder.safetensors"
    export_encoder(path, dict(model.encoder.named_parameters()), model.export_recipe())
    loaded, image = load_encoder(path).eval(), torch.randn(2, 3, 32, 32)
    assert len(loaded.blocks) == 10
    with torch.no_grad():
        assert (model.image_features(image) - loaded.forward_features(image)).abs().max() <= 1e-5
    recipe = json.loads(path.with_suffix(".json").read_text())
    assert recipe["arguments"]["depth"] == 10
    if residual == "all":
        stock = timm.create_model("vit_tiny_patch16_224", depth=10, num_classes=0, img_size=32)
        stock.load_state_dict(load_file(path), strict=True)


@pytest.mark.parametrize("genome", [SPEC, None])
def test_relation_maps_are_rows_of_r(genome):
    model = build_mrm(genome=genome).eval()
    images, packed, present = batch()
    maps = relation_maps(model, images, model.unpack(packed, present)[0] if genome else None)
    assert list(maps) == (["class token", "genome"] if genome else ["class token"])
    for intact, masked in maps.values():
        assert intact.shape == masked.shape == (6, 2, 2)
        assert (intact > 0).all()
        assert (intact.sum((1, 2)) < 1).all()  # without the class token's column
        assert (masked.sum((1, 2)) < 0.5).all()


def test_relation_maps_with_nothing_masked_are_the_same_on_both_branches():
    model = build_mrm(NO_MASKS).eval()
    images, packed, present = batch()
    for intact, masked in relation_maps(model, images, model.unpack(packed, present)[0]).values():
        assert torch.equal(intact, masked)


def test_the_first_relation_blocks_map_is_timms_attention():
    """One relation block: the class token's row of timm's own softmax, the mean over heads."""
    model = build_mrm({"blocks": 1}, genome=None).eval()
    images = batch()[0]
    intact, _ = relation_maps(model, images, None)["class token"]
    block = model.encoder.blocks[0]
    q, k, _ = block.attn.qkv(block.norm1(model.encoder.tokens(images))).unflatten(-1, (3, 3, 64)).unbind(2)
    rows = torch.einsum("bhd,bnhd->bhn", q[:, 0], k).div(8).softmax(-1).mean(1)
    assert torch.allclose(intact.flatten(1), rows[:, 1:], atol=1e-6)


def test_figures_show_reconstructions_and_relations():
    reconstructions, relations = build_mrm().eval().figures(as_batch(*batch()))
    assert [column.title for column in reconstructions.columns] == ["original", "reconstruction"]
    assert all(column.images.dtype == torch.uint8 for column in (*reconstructions.columns, *relations.columns))
    assert [column.heat is None for column in relations.columns] == [True, False, False, False, False]
