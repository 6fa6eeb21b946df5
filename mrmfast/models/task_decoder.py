"""MultiMAE's decoder of one output: queries of one modality over the visible tokens of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mrmfast.config import NonNegativeInt, PositiveInt
from mrmfast.errors import UserError
from mrmfast.models.activation_checkpointing import recomputed
from mrmfast.models.attention import pack_attention


@dataclass(frozen=True)
class TaskDecoderConfig:
    """Sizes of the decoders, as published by default.

    Attributes
    ----------
    width, heads : int
        Of all its layers.
    depth : int
        Self-attention blocks after the cross-attention.
    """

    width: PositiveInt = 256
    depth: NonNegativeInt = 2
    heads: PositiveInt = 8

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise UserError(f"width={self.width}: must be a multiple of heads={self.heads} and of 4")


class Token(nn.Module):
    """One learned token as a module, so that ZeRO-3 gathers it and ``no_weight_decay`` can name it."""

    def __init__(self, width: int, std: float = 0.02) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width) * std)

    def forward(self) -> Tensor:
        """Return the token, (1, 1, width)."""
        return self.token.clone()  # ZeRO-3 frees the parameter itself after this call


class CrossAttention(nn.Module):
    """Attention of one sequence over another.

    Parameters
    ----------
    width, heads : int
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, query_BND: Tensor, context_BKD: Tensor) -> Tensor:
        """(B, N, D) and (B, K, D) to (B, N, D)."""
        query = self.q(query_BND).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(context_BKD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return out


class TokenPositions(nn.Module):
    """What a decoder adds to the tokens of one modality: the task embedding and the position of each.

    Parameters
    ----------
    tokens, width : int
    fixed : Tensor, (tokens, width), optional
        Positions on a grid; learned ones where there is none.
    """

    fixed: Tensor | None

    def __init__(self, tokens: int, width: int, fixed: Tensor | None) -> None:
        super().__init__()
        self.task = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.register_buffer("fixed", fixed, persistent=False)
        self.learned = None if fixed is not None else nn.Parameter(torch.randn(tokens, width) * 0.02)

    def forward(self) -> Tensor:
        """Return (1, tokens, width)."""
        positions = self.learned if self.fixed is None else self.fixed.to(self.task.dtype)
        assert positions is not None
        return self.task + positions


class TaskDecoder(nn.Module):
    """Decoder of one output (Bachmann et al. 2022).

    Parameters
    ----------
    config : TaskDecoderConfig
    encoder_width : int
    modality : str
        Whose tokens it predicts.
    tokens : mapping of str to int
        Tokens of each modality, in the order of the sequence.
    positions : mapping of str to Tensor
        Fixed positions, (tokens, width), of the modalities that have some.
    head : Module
        Turns tokens into predictions: a Linear, or one map per group of features.

    Notes
    -----
    The cross-attention has no residual connection: a query carries the position of its token, and nothing of it may
    reach the prediction but through attention.
    """

    def __init__(
        self,
        config: TaskDecoderConfig,
        encoder_width: int,
        modality: str,
        tokens: Mapping[str, int],
        positions: Mapping[str, Tensor],
        head: nn.Module,
    ) -> None:
        super().__init__()
        width = config.width
        start = sum(list(tokens.values())[: list(tokens).index(modality)])
        self.own = slice(start, start + tokens[modality])
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = Token(width, std=0.0)
        # A list, as a modality's name may hold a dot.
        self.embeddings = nn.ModuleList(
            TokenPositions(count, width, positions.get(name)) for name, count in tokens.items()
        )
        self.query_norm, self.context_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.cross = CrossAttention(width, config.heads)
        self.out_norm, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width, 4 * width)
        self.blocks = nn.ModuleList(
            pack_attention(Block(width, config.heads, qkv_bias=True)) for _ in range(config.depth)
        )
        self.head = head
        self.activation_checkpointing = False

    def forward(self, encoded_BKD: Tensor, kept_BK: Tensor, restore_BN: Tensor) -> Tensor:
        """Predict the tokens of the modality.

        Parameters
        ----------
        encoded_BKD : Tensor, (B, K + 1, D)
            The visible tokens, then the global one.
        kept_BK : Tensor of int64, (B, K)
            Which token of the complete sequence each visible one is.
        restore_BN : Tensor of int64, (B, N)
            Where each token of the complete sequence lies among the visible ones and the mask tokens after them.

        Returns
        -------
        Tensor, (B, tokens of the modality, ...)
        """
        x, global_token = self.embed(encoded_BKD).split([kept_BK.shape[1], 1], 1)
        masks = self.mask_token().expand(len(x), restore_BN.shape[1] - kept_BK.shape[1], -1)
        x = torch.cat([x, masks], 1).gather(1, restore_BN[..., None].expand(-1, -1, x.shape[-1]))
        x = x + torch.cat([embedding() for embedding in self.embeddings], 1)
        visible = x.gather(1, kept_BK[..., None].expand(-1, -1, x.shape[-1]))
        context = self.context_norm(torch.cat([visible, global_token], 1))
        x = self.cross(self.query_norm(x[:, self.own]), context)
        x = x + self.mlp(self.out_norm(x))
        for block in self.blocks:
            x = recomputed(self.activation_checkpointing, block, x)
        out: Tensor = self.head(x)
        return out
