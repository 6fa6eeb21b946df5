"""A task is trained by what trains an objective: its target arrives beside the views."""

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mrmfast.batch import LabelSpec
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.base import LossOutput
from mrmfast.tasks.base import Task


@dataclass(frozen=True)
class GradingConfig:
    name: Literal["grading"] = "grading"


class Grading(Task):
    Config = GradingConfig
    target_kind = "class"
    primary_metric = "accuracy"

    def __init__(self, config, encoder, labels):
        super().__init__(config, encoder, labels)
        self.head = nn.Linear(encoder.width, len(labels.names))

    def predict(self, image_BCHW):
        return self.head(self.encoder(image_BCHW)[:, 0])

    def compute_loss(self, batch, info):
        loss = cross_entropy(self.predict(batch.views[0]), batch.target)
        return LossOutput(loss, {"class": loss.detach()})


def test_a_task_sees_its_target():
    torch.manual_seed(0)
    encoder = ImageEncoder("vit_tiny_patch16_224", 32, depth=1)
    task = Grading(GradingConfig(), encoder, LabelSpec("class", ("none", "mild", "severe")))
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    losses = []
    for target in (torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 2, 2])):
        loss, parts = task((image,), (), torch.ones(4, 0, dtype=torch.bool), target, 0, 0, 1)
        assert loss.item() == pytest.approx(cross_entropy(task.predict(image), target).item(), rel=1e-6)
        assert parts["class"] == loss
        losses.append(loss)
    assert losses[0] != losses[1]
    losses[0].backward()
    assert all(p.grad is not None for p in task.parameters())
