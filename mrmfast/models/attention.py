"""Plain self-attention whose gradient is one packed tensor."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class PackedAttention(nn.Module):
    """timm's ``Attention`` without norms, gates and dropout; the same parameters under the same names.

    timm unpacks q, k and v from (3, B, H, N, d), so that autograd stacks their gradients in that order and copies the
    stack once more into the projection's (B, N, 3 D). Unpacked along the third axis of (B, N, 3, H, d), the gradients
    are stacked where they belong. Outputs and gradients are equal to the bit.

    Parameters
    ----------
    attention : timm.layers.Attention
        Whose projections are taken over.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads: int = attention.num_heads
        self.qkv, self.proj = attention.qkv, attention.proj

    def forward(self, x_BND: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) to (B, N, D); timm's blocks name the other two."""
        projected = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in projected)
        related = scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal)
        out: Tensor = self.proj(related.transpose(1, 2).flatten(2))
        return out

    def class_attention(self, x_BND: Tensor) -> Tensor:
        """Return how much the first token attends to each other one, mean over the heads: (B, N, D) to (B, N - 1)."""
        q, k, _ = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # each (B, N, H, d)
        logits_BHN = (q[:, :1].transpose(1, 2) @ k.permute(0, 2, 3, 1)).squeeze(2) * q.shape[-1] ** -0.5
        return logits_BHN.softmax(-1).mean(1)[:, 1:]


def pack_attention(block: Block) -> Block:
    """Give a plain timm block the attention above; its state dict stays the same."""
    block.attn = PackedAttention(block.attn)
    return block
