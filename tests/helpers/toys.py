"""A toy objective that keeps the contract, and toys that break one part of it each."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from mrmfast.models.ema import EMA
from mrmfast.models.export import ExportRecipe
from mrmfast.objectives.base import Column, Figure, LossOutput, Objective


@dataclass(frozen=True)
class ToyConfig:
    name: Literal["toy"] = "toy"


class Toy(Objective):
    """Distils from the moving average of its own head."""

    Config = ToyConfig
    max_zero_stage = 2

    def __init__(self, config, encoder, genome):
        super().__init__(config, encoder, genome)
        self.head = nn.Linear(encoder.width, 8)
        self.teacher = EMA(self.head)

    def compute_loss(self, batch, info):
        features = self.encoder(batch.views[0]).mean(1)
        noise = torch.rand(len(features), 1, generator=torch.Generator().manual_seed(info.seed)).to(features.device)
        loss = ((self.head(features) - self.teacher(features.float()) - 1).square() * noise).mean()
        return LossOutput(loss, {"distil": loss.detach()})

    def after_step(self, info):
        self.teacher.update(self.head, 0.99)

    def figures(self, batch):
        return [Figure("toy", "Toy", (Column("image", batch.views[0]),))]


class NotFinite(Toy):
    def compute_loss(self, batch, info):
        output = super().compute_loss(batch, info)
        return replace(output, loss=output.loss / 0)


class Unused(Toy):
    def __init__(self, config, encoder, genome):
        super().__init__(config, encoder, genome)
        self.forgotten = nn.Linear(2, 2)


class OtherRandomness(Toy):
    def compute_loss(self, batch, info):
        output = super().compute_loss(batch, info)
        return replace(output, loss=output.loss * (1 + np.random.rand()))  # noqa: NPY002 - what is not allowed


class RoundedLoss(Toy):
    def compute_loss(self, batch, info):
        output = super().compute_loss(batch, info)
        return replace(output, loss=output.loss.to(self.head.weight.dtype))


class ReadsValues(Toy):
    def compute_loss(self, batch, info):
        output = super().compute_loss(batch, info)
        return replace(output, loss=output.loss * (1 + float(batch.present.sum())))  # waits for the device


class MovedInForward(Toy):
    def compute_loss(self, batch, info):
        self.teacher.update(self.head, 0.5)
        with torch.no_grad():
            self.teacher.module.bias.add_(1)
        return super().compute_loss(batch, info)


class NeverMoved(Toy):
    def after_step(self, info):
        pass


class RoundedAverage(Toy):
    def __init__(self, config, encoder, genome):
        super().__init__(config, encoder, genome)
        self.teacher = nn.Linear(encoder.width, 8).requires_grad_(False)

    def compute_loss(self, batch, info):
        loss = self.head(self.encoder(batch.views[0]).mean(1)).square().mean()
        return LossOutput(loss, {"toy": loss.detach()})

    def after_step(self, info):
        self.teacher.weight.data.lerp_(self.head.weight.data, 0.01)


class OtherExport(Toy):
    def export_recipe(self):
        return ExportRecipe(self.encoder.arch, {**self.encoder.arguments, "class_token": True, "act_layer": "relu"})


class FloatFigures(Toy):
    def figures(self, batch):
        return [Figure("toy", "Toy", (Column("image", batch.views[0].float()),))]


class Counting(Toy):
    """Keeps a state that no checkpoint has."""

    calls = 0

    def compute_loss(self, batch, info):
        self.calls += 1
        output = super().compute_loss(batch, info)
        return replace(output, loss=output.loss * self.calls)


class ThreeStages(Toy):
    """Has an average, which ZeRO 3 takes apart."""

    max_zero_stage = 3
