"""MRM as the equations read: each branch by itself, nothing shared, nothing fused. The reference of the fast model.

It borrows the parameters and the tested sublayers of an :class:`mrmfast.objectives.mrm.MRM` and does the rest plainly:
floats in, whole relations in memory (``ops/relation_masking/reference.py``), patches copied for the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrmfast.models.patch_embed import normalise, patchify
from mrmfast.objectives.mrm import MRM
from mrmfast.objectives.mrm.matching import draw_pairs, relation_matching
from mrmfast.objectives.mrm.relation import Branches, CrossRelation
from mrmfast.ops.genome_unpack.reference import unpack_genome
from mrmfast.ops.relation_masking import reference


def attention(q_BND: Tensor, k_BMD: Tensor, v_BMD: Tensor, heads: int, ratio: float | None) -> Tensor:
    """R V, or R^M V where a ratio is given: (B, N, D)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BND, k_BMD, v_BMD))
    masked = ratio is not None
    outputs = reference.relation_attention(q, k, v, ratio or 0.0, intact=not masked, masked=masked)
    output = outputs[masked]
    assert output is not None
    return output.transpose(1, 2).flatten(2)


def self_relation(block: Any, x_BND: Tensor, ratio: float | None, residual: bool) -> Tensor:
    """Self relation of a pre-norm block, (B, N, D)."""
    q, k, v = block.attn.qkv(block.norm1(x_BND)).chunk(3, -1)
    related = block.attn.proj(attention(q, k, v, block.attn.num_heads, ratio))
    return x_BND + related if residual else related


def cross_relation(cross: CrossRelation, x_BND: Tensor, context_BMD: Tensor, ratio: float | None) -> Tensor:
    """Queries of one modality over the other, (B, N, D)."""
    context_BMD = cross.norm_context(context_BMD)
    query = cross.query(cross.norm_query(x_BND))
    return cross.proj(attention(query, cross.key(context_BMD), cross.value(context_BMD), cross.heads, ratio))


def encode(model: MRM, image_BCHW: Tensor, x_BF: Tensor | None, masked: bool) -> tuple[Tensor, Tensor | None]:
    """Run one branch: z_I and z_G, or z_{I,M} and z_{G,M}."""
    mask, encoder = model.config.mask, model.encoder
    residual = mask.residual

    def ratio(tau: float) -> float | None:
        return tau if masked else None

    image = encoder.tokens(image_BCHW)
    genome = None
    if x_BF is not None:
        assert model.genome is not None
        genome = model.genome.tokens(x_BF.to(image.dtype))
    block: Any
    for number, block in enumerate(encoder.blocks):
        if number >= mask.blocks:
            image = block(image)
            continue
        image = self_relation(block, image, ratio(mask.tau_image_self), residual == "all")
        if genome is not None:
            assert model.genome is not None
            snn: Any = model.genome.blocks[number]
            genome = self_relation(snn, genome, ratio(mask.tau_genome_self), residual == "all")
            to_image, to_genome = model.cross_relations(number)
            from_genome = cross_relation(to_image, image, genome, ratio(mask.tau_image_cross))
            from_image = cross_relation(to_genome, genome, image, ratio(mask.tau_genome_cross))
            if residual != "none":
                from_genome, from_image = image + from_genome, genome + from_image
            image, genome = from_genome, from_image
            genome = genome + snn.mlp(snn.norm2(genome))
        image = image + block.mlp(block.norm2(image))
    if genome is not None:
        assert model.genome is not None
        for layer in model.genome.layers:
            genome = layer(genome)
    return encoder.norm(image), genome


def literal_loss(
    model: MRM, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute what ``model(...)`` computes: a model without dropout or in eval mode, its options the paper's."""
    reconstruct, match, dtype = model.config.reconstruct, model.config.match, model.encoder.norm.weight.dtype
    assert not any((reconstruct.norm_pixels, reconstruct.binary_cross_entropy, match.stop_gradient))
    assert reconstruct.genome_from == "both"
    pixels_BCHW = normalise(image_BCHW, torch.promote_types(dtype, torch.float32))
    x_BF = observed_BF = None
    if model.spec is not None:
        x_BF, observed_BF = unpack_genome(packed, present, model.spec.modalities, model.fill.float())
    z_image, z_genome = encode(model, pixels_BCHW, x_BF, masked=False)
    z_image_masked, z_genome_masked = encode(model, pixels_BCHW, x_BF, masked=True)
    predicted_BNP = model.image_decoder(z_image_masked, z_genome)
    parts = {"image": (predicted_BNP.float() - patchify(pixels_BCHW, model.encoder.patch)).square().mean()}
    if x_BF is not None and observed_BF is not None:
        error_BF = (model.genome_decoder(z_genome_masked, z_image).float() - x_BF).square() * observed_BF
        parts["genome"] = error_BF.sum() / observed_BF.sum().clamp(min=1)
    chosen = draw_pairs(len(image_BCHW), match.pairs, seed)

    def pooled(intact: Tensor, masked: Tensor) -> Branches:
        return Branches.of(intact[chosen].float().mean(1), masked[chosen].float().mean(1))

    genome_pairs = None
    if z_genome is not None and z_genome_masked is not None:
        genome_pairs = pooled(z_genome, z_genome_masked)
    parts |= relation_matching(pooled(z_image, z_image_masked), genome_pairs, known=present.any(1)[chosen])
    weights = {"self": match.weight * match.self_relations, "cross": match.weight * match.cross_relations}
    loss = torch.stack([weights.get(name, 1.0) * value for name, value in parts.items()]).sum()
    return loss, {name: value.detach() for name, value in parts.items()}
