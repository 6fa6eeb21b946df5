"""One step of the student: four distillation losses, refined, beside the cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from pydantic import AllowInfNan
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from mrmfast.config import NonNegative, PositiveInt, Share
from mrmfast.errors import UserError
from mrmfast.models.ema import EMA
from mrmfast.objectives.base import Mode
from mrmfast.tasks.xing.discrepancy import Contrast, DiscrepancyLoss, Pairs, Rule
from mrmfast.tasks.xing.networks import PathHead
from mrmfast.tasks.xing.refinement import gradient_cosines, refinement_weights

TEACHERS = ("fusion", "ema")


@dataclass(frozen=True)
class XingConfig:
    """Settings of the distillation, as published by default.

    Attributes
    ----------
    mode : {"same_settings", "official"}
        official: the published code. same_settings: discrepancy with the sign of the paper's figure, the fusion teacher
        in evaluation mode, the moving average begins as the student, weights of the refinement are clipped means.
    width, embedding : int
        Of the feature, and of what contrastive losses compare.
    alpha, beta : float
        Weights of the Kullback-Leibler and of the contrastive losses.
    kl_temperature, temperature : float
        Of the Kullback-Leibler and of the contrastive losses.
    bank_momentum, ema : float
        Of the memory banks and of the moving average.
    positives, negatives : int
        Candidates of a sample.
    chosen_positives, chosen_negatives : int
    rule : {"mid", "hard", "random", "curriculum"}
        Which positives are chosen.
    """

    mode: Mode = "same_settings"
    width: PositiveInt = 128
    embedding: PositiveInt = 128
    alpha: NonNegative = 1.0
    beta: NonNegative = 0.02
    kl_temperature: Annotated[float, AllowInfNan(False), Gt(0)] = 1.0
    temperature: Annotated[float, AllowInfNan(False), Gt(0)] = 0.07
    bank_momentum: Share = 0.5
    ema: Annotated[Share, Lt(1)] = 0.99
    positives: PositiveInt = 300
    negatives: PositiveInt = 700
    chosen_positives: PositiveInt = 20
    chosen_negatives: PositiveInt = 512
    rule: Rule = "mid"

    def __post_init__(self) -> None:
        for kind in ("positives", "negatives"):
            if getattr(self, f"chosen_{kind}") > getattr(self, kind):
                raise UserError(
                    f"chosen_{kind}={getattr(self, f'chosen_{kind}')}: must be at most {kind}={getattr(self, kind)}"
                )


@dataclass(frozen=True)
class Outputs:
    """Features, (B, width), and logits, (B, classes), of student, fusion teacher and moving average."""

    student: tuple[Tensor, Tensor]
    fusion: tuple[Tensor, Tensor]
    ema: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Refined:
    """The loss of a step, and what it is made of.

    Attributes
    ----------
    loss, cross_entropy, distillation : Tensor, scalar
        Their sum first.
    bank : Tensor, (4,)
        The four losses, weighted by alpha and beta: both Kullback-Leibler ones, then both contrastive ones.
    weights, norms : Tensor, (5,)
        Of the refinement, and of the gradients at the student's feature; the cross-entropy last.
    cosines : Tensor, (5, 5)
    contrasts : dict of str to Contrast
        By teacher.
    """

    loss: Tensor
    cross_entropy: Tensor
    distillation: Tensor
    bank: Tensor
    weights: Tensor
    norms: Tensor
    cosines: Tensor
    contrasts: dict[str, Contrast]


class Distillation(nn.Module):
    """Student, frozen fusion teacher, moving average of the student, and the contrastive losses.

    Parameters
    ----------
    config : XingConfig
    student : Module
        Image to feature, (B, width), and logits.
    teacher : Module
        Image and genes to fused feature and logits first (:class:`mrmfast.tasks.xing.networks.FusionTeacher`).
    samples : int
        Training images.
    """

    def __init__(self, config: XingConfig, student: nn.Module, teacher: nn.Module, samples: int) -> None:
        super().__init__()
        self.config, self.student, self.teacher = config, student, teacher.requires_grad_(False)
        self.ema = EMA(student)
        if config.mode == "official":
            # Its head is an independent one, until the first step makes it the student's.
            for module in self.ema.modules():
                if isinstance(module, PathHead):
                    module.reset()
        self.contrast = nn.ModuleDict(
            {
                name: DiscrepancyLoss(
                    samples,
                    config.width,
                    config.embedding,
                    config.temperature,
                    config.bank_momentum,
                    config.chosen_negatives,
                    as_published=config.mode == "official",
                )
                for name in TEACHERS
            }
        )
        self.train()

    def train(self, mode: bool = True) -> Distillation:
        """Set the mode of all parts; the frozen teacher stays in evaluation mode, but for ``official``."""
        super().train(mode)
        if self.config.mode != "official":
            self.teacher.eval()
        return self

    def trained(self) -> Iterable[nn.Parameter]:
        """Return the parameters that learn: the student's, and the embeddings'."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def outputs(self, image: Tensor, second_image: Tensor, genes_BG: Tensor) -> Outputs:
        """Run the three networks; `second_image` is another augmentation, for the moving average."""
        with torch.no_grad():
            fused, logits, *_ = self.teacher(image, genes_BG)
        return Outputs(self.student(image), (fused, logits), self.ema(second_image))

    def losses(self, outputs: Outputs, labels_B: Tensor, pairs: Mapping[str, Pairs]) -> Refined:
        """Compute the loss of a step.

        Parameters
        ----------
        outputs : Outputs
        labels_B : Tensor of int64, (B,)
        pairs : mapping of str to Pairs
            By teacher: ``fusion``, ``ema``.
        """
        c = self.config
        feature, logits = outputs.student
        teachers = {"fusion": outputs.fusion, "ema": outputs.ema}
        contrasts: dict[str, Contrast] = {
            name: self.contrast[name](feature, teachers[name][0].detach(), pairs[name]) for name in TEACHERS
        }
        bank = [c.alpha * divergence(logits, teachers[name][1], c.kl_temperature) for name in TEACHERS]
        bank += [c.beta * contrasts[name].loss for name in TEACHERS]
        supervised = cross_entropy(logits, labels_B)
        cosines, norms = gradient_cosines([*bank, supervised], feature)
        weights = refinement_weights(cosines, c.mode == "official")
        stacked = torch.stack(bank)
        distillation = (weights[:-1] * stacked).sum()
        loss = supervised + distillation
        return Refined(loss, supervised, distillation, stacked, weights, norms, cosines, contrasts)

    def after_step(self, step: int, pairs: Mapping[str, Pairs], refined: Refined) -> None:
        """Update banks and moving average after optimiser step number `step`, counted from 0."""
        for name in TEACHERS:
            loss = self.contrast[name]
            assert isinstance(loss, DiscrepancyLoss)
            loss.update(pairs[name], refined.contrasts[name])
        rising = 1 - 1 / (step + 1) if self.config.mode == "official" else 1.0
        self.ema.update(self.student, min(rising, self.config.ema))


def divergence(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the student's classes from the teacher's, a mean over the batch."""
    student, teacher = (log_softmax(logits / temperature, 1) for logits in (student_BC, teacher_BC.detach()))
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)


def build_adam(parameters: Iterable[nn.Parameter], lr: float = 5e-4) -> torch.optim.Adam:
    """Make the published optimiser: Adam with coupled weight decay on all parameters."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=4e-4)


def rate(epoch: int, epochs: int, lr: float = 5e-4) -> float:
    """Return the published rate of epoch 1 to `epochs`: it falls linearly, and does not reach 0."""
    return lr * (1 - epoch / (epochs + 1))
