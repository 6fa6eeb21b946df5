"""AttMask (Kakogeorgiou et al.; ECCV 2022) on iBOT (Zhou et al.; ICLR 2022): hide what the teacher attends to.

The teacher is a moving average of the student. See ``docs/methods/attmask.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from pydantic import AllowInfNan
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from mrmfast.batch import Batch, ViewSpec
from mrmfast.config import NonNegativeInt, PositiveInt, Share
from mrmfast.errors import UserError
from mrmfast.models.ema import EMA, rising_momentum
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.heads import DistillationHead, DistillationHeadConfig
from mrmfast.models.image_encoder import EncoderDesign, ImageEncoder
from mrmfast.models.patch_embed import denormalise, image_as_patches, normalise
from mrmfast.objectives.augment import AugmentConfig
from mrmfast.objectives.base import Column, Figure, LossOutput, Mode, Objective, StepInfo
from mrmfast.objectives.centres import Centre

Temperature = Annotated[float, AllowInfNan(False), Gt(0)]


@dataclass(frozen=True)
class MaskConfig:
    """What is hidden from the student.

    Attributes
    ----------
    variant : {"high", "hint"}
        high: the patches with the largest attention. hint: a few of the very largest are shown again.
    ratio : (float, float)
        Range of the share of patches that are masked; drawn once per pass.
    probability : float
        Of an image to be masked at all.
    hint : float
        Share of patches among which the hints are drawn.
    """

    variant: Literal["high", "hint"] = "high"
    ratio: tuple[Share, Share] = (0.1, 0.5)
    probability: Share = 0.5
    hint: Share = 0.1


@dataclass(frozen=True)
class TeacherConfig:
    """The moving average, and what is done with its outputs.

    Attributes
    ----------
    momentum : float
        At the first step; it rises to 1 on half a cosine.
    temperature, patch_temperature : (float, float)
        First and last; between them in equal steps from epoch to epoch.
    warmup_epochs : int
        After these the temperature is the last.
    centre : float
        Momentum of the mean outputs, which are subtracted.
    """

    momentum: Share = 0.996
    temperature: tuple[Temperature, Temperature] = (0.04, 0.07)
    patch_temperature: tuple[Temperature, Temperature] = (0.04, 0.07)
    warmup_epochs: NonNegativeInt = 30
    centre: Share = 0.9


def _view(crop: tuple[float, float], blur: float, solarise: float = 0.0) -> AugmentConfig:
    return AugmentConfig(crop, 0.4, 0.4, 0.2, 0.1, blur=blur, solarise=solarise)


@dataclass(frozen=True)
class CropsConfig:
    """The views: two of ``data.image_size``, and small ones that only the student sees.

    Attributes
    ----------
    first, second, local : AugmentConfig
    locals : int
        Number of small views (10 in the published recipe).
    local_size : int
        Their side, pixels; a multiple of the patch.
    """

    first: AugmentConfig = field(default_factory=lambda: _view((0.25, 1.0), 1.0))
    second: AugmentConfig = field(default_factory=lambda: _view((0.25, 1.0), 0.1, 0.2))
    local: AugmentConfig = field(default_factory=lambda: _view((0.05, 0.25), 0.5))
    locals: NonNegativeInt = 0
    local_size: PositiveInt = 96


@dataclass(frozen=True)
class AttMaskConfig:
    """Settings of AttMask.

    Attributes
    ----------
    mode : {"same_settings", "official"}
        official: drop path of the student, and weight decay of tokens and positions, as published.
    temperature : float
        Of the student's outputs.
    epochs : int
        Into how many parts the run is divided for what changes by the epoch.
    frozen_epochs : int
        Epochs before the head's last layers are trained.
    mask, head, teacher, crops
        Sections; see their dataclasses.
    """

    name: Literal["attmask"] = "attmask"
    mode: Mode = "same_settings"
    temperature: Temperature = 0.1
    epochs: PositiveInt = 100
    frozen_epochs: NonNegativeInt = 1
    mask: MaskConfig = field(default_factory=MaskConfig)
    head: DistillationHeadConfig = field(default_factory=DistillationHeadConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    crops: CropsConfig = field(default_factory=CropsConfig)


@dataclass(frozen=True)
class Draws:
    """What is random in a pass.

    Attributes
    ----------
    ratio, hint_ratio : float
        Share of patches masked; share of the hints, a second draw as in the published code.
    gate_B : Tensor, (2 B,)
        An image is masked where this is at most ``mask.probability``.
    pick_BN : Tensor, (2 B, patches)
        The hints are the patches with the smallest values.
    """

    ratio: float
    hint_ratio: float
    gate_B: Tensor
    pick_BN: Tensor


class AttMask(Objective):
    """Student of masked views, teacher of whole ones; cross-entropy of class tokens across views and of patches."""

    Config = AttMaskConfig
    max_zero_stage = 2
    config: AttMaskConfig

    def __init__(self, config: AttMaskConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        crops, classes = config.crops, config.head.classes
        if crops.locals and crops.local_size % encoder.patch:
            raise UserError(
                f"objective.crops.local_size={crops.local_size}: not a multiple of the patch {encoder.patch}"
            )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        self.head = DistillationHead(encoder.width, config.head)
        self.teacher_encoder, self.teacher_head = EMA(encoder), EMA(self.head)
        for module in self.teacher_encoder.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0  # the teacher skips no branch
        self.class_centre = Centre(classes)
        self.patch_centre = Centre(config.head.patch_classes or classes)

    @classmethod
    def encoder_design(cls, config: AttMaskConfig) -> EncoderDesign:
        """Drop path in the official mode."""
        return EncoderDesign(drop_path=0.1 if config.mode == "official" else 0.0)

    @classmethod
    def views(cls, config: AttMaskConfig) -> tuple[ViewSpec, ...]:
        """Two large views of different recipes, then the small ones."""
        crops = config.crops
        return (crops.first.view(), crops.second.view(), *[crops.local.view(crops.local_size)] * crops.locals)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """As published in the official mode: all but vectors."""
        return parameter.ndim >= 2 if self.config.mode == "official" else super().decays(name, parameter)

    def trained_from(self, name: str) -> float:
        """The last layers wait for some epochs."""
        last = name.startswith(("head.class_layer.", "head.patch_layer."))
        return self.config.frozen_epochs / self.config.epochs if last else 0.0

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Mask what the teacher attends to, and compare student and teacher."""
        draws = self.draw(2 * len(batch.views[0]), info.seed)
        images, local = torch.cat(batch.views[:2]), batch.views[2:]
        class_loss, patch_loss = self.distil(images, local, draws, info)
        return LossOutput(class_loss + patch_loss, {"class": class_loss.detach(), "patch": patch_loss.detach()})

    def draw(self, images: int, seed: int) -> Draws:
        """Draw what is random, on the CPU, so that devices agree."""
        generator, patches = torch.Generator().manual_seed(seed), self.encoder.grid**2
        low, high = self.config.mask.ratio
        ratio, hint_ratio = (low + (high - low) * torch.rand(2, generator=generator)).tolist()
        gate_B, pick_BN = (torch.rand(*shape, generator=generator) for shape in ((images,), (images, patches)))
        return Draws(ratio, hint_ratio, gate_B, pick_BN)

    def mask(self, attention_BN: Tensor, draws: Draws) -> Tensor:
        """Return what is masked: bool, (2 B, patches)."""
        settings, patches = self.config.mask, attention_BN.shape[1]
        order_BN = attention_BN.argsort(1, descending=True)
        masked_BN = torch.zeros_like(attention_BN, dtype=torch.bool)
        masked_BN.scatter_(1, order_BN[:, : int(patches * draws.ratio)], True)
        masked_BN &= (draws.gate_B.to(attention_BN.device) <= settings.probability)[:, None]
        if settings.variant == "hint":
            masked_BN.scatter_(1, self.hints(order_BN, draws), False)
        return masked_BN

    def hints(self, order_BN: Tensor, draws: Draws) -> Tensor:
        """Return the patches that are shown again, (2 B, hints), given all in the order of falling attention."""
        share, patches = self.config.mask.hint, order_BN.shape[1]
        top = order_BN[:, : int(patches * share)]
        picked = draws.pick_BN.to(top.device).gather(1, top).argsort(1)
        return top.gather(1, picked[:, : int(share * draws.hint_ratio * patches)])

    def distil(
        self, images_BCHW: Tensor, local: Sequence[Tensor], draws: Draws, info: StepInfo
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of the class tokens and that of the patches.

        Parameters
        ----------
        images_BCHW : Tensor, (2 B, 3, S, S), view 1 of all samples, then view 2
        local : sequence of Tensor, (B, 3, s, s) each, the small views
        draws : Draws
        info : StepInfo, which decides the teacher's temperatures
        """
        with torch.no_grad():
            tokens, attention_BN = self.teacher_encoder.module.forward_with_attention(images_BCHW)
            class_logits, patch_logits = self.teacher_head(tokens)
        masked_BN = self.mask(attention_BN, draws)
        students, student_patches = self.head(
            self.encoder(images_BCHW, masked_BN=masked_BN, mask_token=self.mask_token)
        )
        small = self.head.of_class(self.encoder(torch.cat(list(local)))).chunk(len(local)) if local else ()
        at, teacher = info.step * self.config.epochs // info.total_steps, self.config.teacher
        targets = self.class_centre.sharpen(class_logits, self.temperature_at(at, teacher.temperature))
        patch_targets = self.patch_centre.sharpen(patch_logits, self.temperature_at(at, teacher.patch_temperature))
        self.class_centre.collect(class_logits, info)
        self.patch_centre.collect(patch_logits, info)
        class_loss = self.class_loss(targets.chunk(2), (*students.chunk(2), *small))
        return class_loss, self.patch_loss(patch_targets, student_patches, masked_BN)

    def class_loss(self, targets: Sequence[Tensor], classes: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy of all pairs of a teacher's large view and a student's other view."""
        pairs = [(target, logits) for q, target in enumerate(targets) for v, logits in enumerate(classes) if v != q]
        return torch.stack([self.cross_entropy(target, logits).mean() for target, logits in pairs]).mean()

    def patch_loss(self, targets_BNK: Tensor, logits_BNK: Tensor, masked_BN: Tensor) -> Tensor:
        """Mean cross-entropy of the masked patches of each image, then over all images; one without masks has 0."""
        error_BN = self.cross_entropy(targets_BNK, logits_BNK) * masked_BN
        return (error_BN.sum(1) / masked_BN.sum(1).clamp(min=1)).mean()

    def cross_entropy(self, target: Tensor, logits: Tensor) -> Tensor:
        """Cross-entropy of the student's outputs at its temperature, over the last axis."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return -(target * log_softmax(logits / self.config.temperature, -1)).sum(-1)

    def temperature_at(self, epoch: int, temperatures: tuple[float, float]) -> float:
        """Return the teacher's temperature in an epoch."""
        first, last = temperatures
        warmup = self.config.teacher.warmup_epochs
        return last if epoch >= warmup else first + (last - first) * epoch / max(1, warmup - 1)

    def after_step(self, info: StepInfo) -> None:
        """Move teacher and centres."""
        teacher = self.config.teacher
        self.update_teacher(rising_momentum(teacher.momentum, info.step / info.total_steps))
        self.class_centre.update(teacher.centre, info)
        self.patch_centre.update(teacher.centre, info)

    def update_teacher(self, momentum: float) -> None:
        """Move the average of encoder and head; the mask token is the student's alone."""
        self.teacher_encoder.update(self.encoder, momentum)
        self.teacher_head.update(self.head, momentum)

    def figures(self, batch: Batch) -> list[Figure]:
        """Show images, the teacher's attention, and what is hidden from the student."""
        image_BCHW, grid = batch.views[0], self.encoder.grid
        _, attention_BN = self.teacher_encoder.module.forward_with_attention(image_BCHW)
        draws = self.draw(len(image_BCHW), 0)
        masked_BN = self.mask(attention_BN, replace(draws, gate_B=0 * draws.gate_B))
        original = denormalise(normalise(image_BCHW))
        seen, hidden = original.clone(), masked_BN.unflatten(1, (grid, -1))[:, None, :, None, :, None]
        image_as_patches(seen, self.encoder.patch).masked_fill_(hidden, 128)
        heat = attention_BN.unflatten(1, (grid, grid))
        columns = (Column("original", original), Column("attention", original, heat), Column("student's view", seen))
        return [Figure("attention", "What the teacher attends to is hidden from the student", columns)]
