"""Relation maps for the run's figure: where in the image the relations of the last relation block lie."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mrmfast.objectives.base import Column, Figure
from mrmfast.objectives.mrm.encoders import RelationEncoders
from mrmfast.objectives.mrm.relation import split_heads
from mrmfast.ops.relation_masking import reference


def relation_figure(model: RelationEncoders, image_BCHW: Tensor, x_BF: Tensor | None) -> Figure:
    """Draw R and R^M of the last relation block over the image."""
    columns = [Column("image", image_BCHW)]
    for name, maps in relation_maps(model, image_BCHW, x_BF).items():
        for branch, heat in zip(("intact", "masked"), maps, strict=True):
            columns.append(Column(f"{name}, {branch}", image_BCHW, heat))
    title = "Relations of the last relation block to image patches, mean over heads"
    return Figure("relations", title, tuple(columns))


@torch.no_grad()
def relation_maps(model: RelationEncoders, image_BCHW: Tensor, x_BF: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Run both branches and read R and R^M of the last relation block over the image's patches.

    Parameters
    ----------
    model : RelationEncoders
    image_BCHW : Tensor, uint8, (B, 3, S, S)
    x_BF : Tensor or None, (B, F)

    Returns
    -------
    dict of str to (Tensor, Tensor)
        Whose relation -> (intact, masked), each (B, grid, grid): of the class token's self relation and, with a
        genome, of the genome's cross relation; the mean over heads (and genome tokens).
    """
    mask, encoder = model.config.mask, model.encoder
    block: Any = encoder.blocks[mask.blocks - 1]
    watched: dict[str, nn.Module] = {"qkv": block.attn.qkv}
    if model.genome is not None:
        cross = model.cross_relations(mask.blocks - 1)[1]
        watched |= {"query": cross.query, "key": cross.key}
    seen: dict[str, Tensor] = {}

    def see(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[name] = output

    handles = [module.register_forward_hook(partial(see, name)) for name, module in watched.items()]
    try:
        model.encode(image_BCHW, x_BF)
    finally:
        for handle in handles:
            handle.remove()
    query, key, _ = seen["qkv"].chunk(3, -1)
    relations = {"class token": (query[:, :1], key, mask.tau_image_self)}
    if model.genome is not None:
        relations["genome"] = (seen["query"], seen["key"], mask.tau_genome_cross)
    samples = len(image_BCHW)
    return {name: _over_patches(*parts, samples, encoder.heads, encoder.grid) for name, parts in relations.items()}


def _over_patches(
    query: Tensor, key: Tensor, ratio: float, samples: int, heads: int, grid: int
) -> tuple[Tensor, Tensor]:
    """Relate stacked branches, without the class token's column: intact and masked, (B, grid, grid)."""
    q, k = split_heads(query.float(), heads), split_heads(key.float(), heads)
    identity = torch.eye(k.shape[2], device=k.device).expand(*k.shape[:2], -1, -1)  # R V is R itself
    # The first B are intact tokens, the last B masked ones; both are all while branches are the same.
    outputs = reference.relation_attention(q[:samples], k[:samples], identity[:samples], ratio, masked=False)
    masked_outputs = reference.relation_attention(q[-samples:], k[-samples:], identity[-samples:], ratio, intact=False)
    intact, masked = outputs[0], masked_outputs[1]
    assert intact is not None and masked is not None
    intact, masked = (x.mean((1, 2))[:, 1:].unflatten(1, (grid, grid)) for x in (intact, masked))
    return intact, masked
