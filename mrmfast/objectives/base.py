"""The contract of what is trained: a module that turns one micro-batch into a loss.

One loop (``mrmfast/training``) trains objectives and tasks. To add one, write :meth:`TrainableModule.compute_loss`; the
rest has defaults. ``tests/objectives/test_contract.py`` checks every registered objective against this page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from mrmfast.batch import Batch, ViewSpec
from mrmfast.models.export import ExportRecipe
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import EncoderDesign, ImageEncoder
from mrmfast.ops.wide_products import wide_products

# official: heads, masks, targets and encoder as published. same_settings: the method on this package's encoder.
Mode = Literal["same_settings", "official"]


@dataclass(frozen=True)
class StepInfo:
    """Where in the run a forward pass stands.

    Attributes
    ----------
    seed : int
        The only source of randomness. The caller mixes it from the run's seed, step, micro-batch and rank, so a
        resumed run draws what an unbroken one draws.
    step, total_steps : int
        Optimiser steps done, and those of the whole run.
    """

    seed: int
    step: int = 0
    total_steps: int = 1


@dataclass(frozen=True)
class LossOutput:
    """What a forward pass computes.

    Attributes
    ----------
    loss : Tensor, scalar
        To be minimised; carries the graph.
    parts : dict of str to Tensor
        Detached scalars for the log, by name.
    """

    loss: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Column:
    """One column of a figure: an image per sample, and perhaps a map over it.

    Attributes
    ----------
    title : str
    images : Tensor, uint8, (B, 3, S, S)
    heat : Tensor, float, (B, h, w), optional
        Drawn in colour over the image in grey, on a scale of its own per sample.
    """

    title: str
    images: Tensor
    heat: Tensor | None = None


@dataclass(frozen=True)
class Figure:
    """A figure of a run: a row per sample, a column per :class:`Column`.

    Attributes
    ----------
    name : str
        Of the file, without its ending.
    title : str
    columns : tuple of Column
    """

    name: str
    title: str
    columns: tuple[Column, ...]


class TrainableModule(nn.Module):
    """What the training loop trains: :class:`Objective` or :class:`mrmfast.tasks.base.Task`.

    Attributes
    ----------
    Config : type
        A dataclass; its fields are the keys of the YAML section.
    encoder : ImageEncoder
        The part that is exported.
    max_zero_stage : int
        The highest ZeRO stage that the module supports: 2 where it needs whole parameters outside the forward pass.
    compiled_method : str or None
        The method that ``engine.compile=whole`` takes as one graph; None where there is no such method.
    """

    Config: ClassVar[type[Any]]
    max_zero_stage: ClassVar[int] = 3
    compiled_method: ClassVar[str | None] = None
    encoder: ImageEncoder

    @classmethod
    def views(cls, config: Any) -> tuple[ViewSpec, ...]:
        """Return which views the loader makes of each sample; the plain one by default."""
        return (ViewSpec(),)

    @classmethod
    def min_samples_per_pass(cls, config: Any) -> int:
        """Return the number of samples that a forward pass of a rank needs: 2 where the loss compares samples."""
        return 1

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Compute the loss of one micro-batch.

        Parameters
        ----------
        batch : Batch
            On the module's device; ``keys``, ``epochs`` and ``end`` are empty.
        info : StepInfo
            torch's own generators are seeded with ``info.seed`` already (dropout).
        """
        raise NotImplementedError

    def no_weight_decay(self) -> Iterable[nn.Module]:
        """Return the modules whose parameters are trained without weight decay, whatever :meth:`decays` says."""
        return ()

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Tell whether a parameter has weight decay: by default, all but vectors, class token and positions (timm).

        Published codes have other rules: MAE and iBOT decay tokens, MoCo v3 decays everything.
        """
        return parameter.ndim >= 2 and not name.endswith(("cls_token", "pos_embed"))

    def trained_from(self, name: str) -> float:
        """Return the share of the run's steps before a parameter is first updated; by default 0.

        Until then nothing changes it, not even weight decay (iBOT's last layer in the first epoch).
        """
        return 0.0

    def blocks_run_in_parts(self) -> Iterable[nn.Module]:
        """Return blocks whose forward() is not what training calls: ``engine.compile=blocks`` leaves them alone."""
        return ()

    def after_step(self, info: StepInfo) -> None:
        """Update what no gradient updates (moving averages); called once after each optimiser step, on every rank."""

    def figures(self, batch: Batch) -> list[Figure]:
        """Draw what the run's folder shows at each checkpoint; called in eval mode, without gradients."""
        return []

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, and run the blocks again there."""
        for module in self.modules():
            if hasattr(module, "activation_checkpointing"):
                setattr(module, "activation_checkpointing", enable)  # noqa: B010 - nn.Module's types know tensors alone

    @final  # type: ignore[misc]  # nn.Module declares a variable in place of a method
    def forward(
        self,
        views: tuple[Tensor, ...],
        packed: tuple[Tensor, ...],
        present: Tensor,
        target: Tensor | None,
        seed: int,
        step: int,
        total_steps: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; plain tensors, because DeepSpeed's hooks look at nothing else.

        Parameters
        ----------
        views, packed, present, target
            As in :class:`mrmfast.batch.Batch`.
        seed, step, total_steps
            As in :class:`StepInfo`.
        """
        batch = Batch(views, (None,) * len(views), packed, present, target, keys=(), epochs=(), end=0)
        torch.manual_seed(seed)
        with wide_products(next(self.parameters())):
            output = self.compute_loss(batch, StepInfo(seed, step, total_steps))
        return output.loss, output.parts


class Objective(TrainableModule):
    """A pre-training objective.

    Parameters
    ----------
    config : dataclass
        An instance of ``Config``.
    encoder : ImageEncoder
    genome : GenomeInput or None
        None when training on images alone, and always where `genetics` is "unused".

    Attributes
    ----------
    genetics : {"unused", "optional", "required"}
        Whether the objective learns from genetics.
    """

    genetics: ClassVar[Literal["unused", "optional", "required"]] = "unused"

    def __init__(self, config: Any, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder

    @classmethod
    def encoder_design(cls, config: Any) -> EncoderDesign:
        """Return what the objective changes in the plain image encoder; by default nothing."""
        return EncoderDesign()

    def export_recipe(self) -> ExportRecipe:
        """Return the timm model that computes what the encoder computes."""
        return ExportRecipe(self.encoder.arch, self.encoder.arguments)
