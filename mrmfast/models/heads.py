"""Heads that pre-training puts on the encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from mrmfast.config import PositiveInt


class _BatchNorm(nn.BatchNorm1d):
    """BatchNorm that takes one sample: a pass of one is how arithmetic and memory are counted."""

    def forward(self, x: Tensor) -> Tensor:
        # Without the check of torch.nn.functional.batch_norm.
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, cudnn)


class ProjectionHead(nn.Sequential):
    """Linear without bias and BatchNorm per layer, ReLU between (SimCLR; MoCo v3).

    Statistics are always those of the batch, so there are no running ones.

    Parameters
    ----------
    widths : sequence of int
        Of the features, and of each layer's output.
    last_scale : bool
        Whether the last BatchNorm has a scale (SimCLR); it never has a shift.
    """

    def __init__(self, widths: Sequence[int], *, last_scale: bool) -> None:
        layers: list[nn.Module] = []
        last = len(widths) - 2
        for number, (before, after) in enumerate(pairwise(widths)):
            norm = _BatchNorm(after, affine=number < last or last_scale, track_running_stats=False)
            layers += [nn.Linear(before, after, bias=False), norm, nn.ReLU()]
        norm.register_parameter("bias", None)
        super().__init__(*layers[:-1])


class WeightNormLinear(nn.Module):
    """Linear without bias whose rows are a length times a direction (Salimans, Kingma 2016).

    Parameters
    ----------
    inputs, outputs : int
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.ones(outputs, 1))
        self.direction = nn.Parameter(nn.Linear(inputs, outputs, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return linear(x, self.length * normalize(self.direction, dim=1))


@dataclass(frozen=True)
class DistillationHeadConfig:
    """Sizes of a distillation head.

    Attributes
    ----------
    hidden, bottleneck : int
        Widths of the layers before the last.
    classes : int
        Outputs of the class token.
    patch_classes : int, optional
        Outputs of the patches by a last layer of their own; by default class token and patches share one.
    """

    hidden: PositiveInt = 2048
    bottleneck: PositiveInt = 256
    classes: PositiveInt = 8192
    patch_classes: PositiveInt | None = None


class DistillationHead(nn.Module):
    """Three layers, unit length, and a last layer of classes (DINO, iBOT).

    Parameters
    ----------
    width : int
        Of the tokens.
    config : DistillationHeadConfig
    """

    def __init__(self, width: int, config: DistillationHeadConfig) -> None:
        super().__init__()
        hidden, bottleneck, patch_classes = config.hidden, config.bottleneck, config.patch_classes
        layers = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.class_layer = WeightNormLinear(bottleneck, config.classes)
        self.patch_layer = None if patch_classes is None else WeightNormLinear(bottleneck, patch_classes)

    def forward(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the class token, (B, classes), and of the patches, (B, N - 1, classes)."""
        x = normalize(self.mlp(tokens_BND), dim=-1)
        return self.class_layer(x[:, 0]), (self.patch_layer or self.class_layer)(x[:, 1:])

    def of_class(self, tokens_BND: Tensor) -> Tensor:
        """Return the logits of the class token alone, (B, classes)."""
        logits: Tensor = self.class_layer(normalize(self.mlp(tokens_BND[:, 0]), dim=-1))
        return logits
