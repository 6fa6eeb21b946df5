"""Relation maps for the run's figure: where in the image the relations of the last relation block lie."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mrmfast.models.relation import split_heads
from mrmfast.objectives.base import RelationMaps
from mrmfast.ops.relation_masking import reference

if TYPE_CHECKING:
    from mrmfast.objectives.mrm.objective import MRM


def relation_maps(model: MRM, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor) -> RelationMaps:
    """Run both branches and read R and R^M of the last relation block over the image's patches.

    Parameters
    ----------
    model : MRM
    image_BCHW : Tensor, uint8, (B, 3, S, S)
    packed, present
        As in :class:`mrmfast.batch.Batch`.

    Returns
    -------
    RelationMaps
        Of the class token's self relation and, with a genome, of the genome's cross relation: the mean over heads (and
        genome tokens), branch by branch.
    """
    last, config = model.image.relation_blocks - 1, model.config
    block: Any = model.image.blocks[last]
    watched: dict[str, nn.Module] = {"qkv": block.attn.qkv}
    if model.genome is not None:
        cross = model.cross_sublayers(last)[1]
        watched |= {"query": cross.query, "key": cross.key}
    seen: dict[str, Tensor] = {}

    def see(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[name] = output

    handles = [module.register_forward_hook(partial(see, name)) for name, module in watched.items()]
    try:
        unpacked = model.unpack(packed, present)
        model.encode(image_BCHW, unpacked[0] if unpacked else None)
    finally:
        for handle in handles:
            handle.remove()
    query, key, _ = seen["qkv"].chunk(3, -1)
    maps = {"class token": (query[:, :1], key, config.tau_image * config.mask_self)}
    if model.genome is not None:
        maps["genome"] = (seen["query"], seen["key"], config.tau_genome * config.mask_cross)
    samples, heads, grid = len(image_BCHW), model.image.heads, model.image.grid
    return RelationMaps(image_BCHW, {name: _over_patches(*parts, samples, heads, grid) for name, parts in maps.items()})


def _over_patches(
    query: Tensor, key: Tensor, ratio: float, samples: int, heads: int, grid: int
) -> tuple[Tensor, Tensor]:
    """Relate stacked branches and leave out the class token's column: intact and masked, (B, grid, grid)."""
    q, k = split_heads(query.float(), heads), split_heads(key.float(), heads)
    identity = torch.eye(k.shape[2], device=k.device).expand(*k.shape[:2], -1, -1)  # R V is R itself
    # The first B are intact tokens, the last B masked ones; both are all while branches are the same.
    outputs = reference.relation_attention(q[:samples], k[:samples], identity[:samples], ratio, masked=False)
    masked_outputs = reference.relation_attention(q[-samples:], k[-samples:], identity[-samples:], ratio, intact=False)
    intact, masked = outputs[0], masked_outputs[1]
    assert intact is not None and masked is not None
    intact, masked = (x.mean((1, 2))[:, 1:].unflatten(1, (grid, grid)) for x in (intact, masked))
    return intact, masked
