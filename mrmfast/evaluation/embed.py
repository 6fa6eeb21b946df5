"""Features of a frozen encoder for every image of a dataset that has a label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mrmfast.batch import LabelSpec
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.labels import LabelsConfig
from mrmfast.data.loader import Loader
from mrmfast.models.export import load_encoder

Pool = Literal["mean", "class"]
BATCH = 64


@dataclass(frozen=True)
class Embedding:
    """Features and labels of P images.

    Attributes
    ----------
    features_PD : ndarray of float32
    targets : ndarray
        As in ``Batch.target``: int64 (P,) or float32 (P, C).
    labels : LabelSpec
    participant : ndarray of int64, (P,)
        Participants by number, in no order that means anything.
    training : ndarray of bool, (P,)
        Whether the dataset's split rule puts the participant into training.
    """

    features_PD: np.ndarray
    targets: np.ndarray
    labels: LabelSpec
    participant: np.ndarray
    training: np.ndarray


def embed(encoder: Path, data: DataConfig, labels: LabelsConfig, pool: Pool = "mean") -> Embedding:
    """Pass every labelled image of a dataset, without augmentation and without genetics, through a frozen encoder.

    Parameters
    ----------
    encoder : Path
        ``encoder.safetensors``.
    data : DataConfig
        The dataset; split, genetics and augmentation are chosen here.
    labels : LabelsConfig
        The targets. Images without one are dropped.
    pool : {"mean", "class"}
        The feature of an image: the mean of its patch tokens, or the class token.

    Raises
    ------
    UserError
        The encoder or the dataset cannot be read, or no image has a label.
    """
    model: Any = load_encoder(encoder).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = replace(
        data,
        split="all",
        modalities=[],
        image_size=model.pretrained_cfg["input_size"][-1],
        rotation=0.0,
        flip=0.0,
        sampling="images",
        weights=None,
        pixels="float32",
        labels=replace(labels, missing="drop"),
    )
    dataset = open_dataset(config)
    try:
        loader = Loader(
            dataset, config, seed=0, batch=BATCH, micro_batch=BATCH, rank=0, world=1, device=device
        )  # fmt: skip
        model.to(device)
        features, targets = [], []
        keys: list[str] = []
        for batch in loader.batches(0, end=len(loader.sampler)):
            assert batch.target is not None
            features.append(pooled(model, batch.views[0].to(device), pool).cpu().numpy())
            targets.append(batch.target.numpy().copy())
            keys += batch.keys
        spec = dataset.label_spec()
        assert spec is not None
        of_key = dict(zip(dataset.table.key.tolist(), dataset.table.participant.tolist(), strict=True))
        participants = [of_key[key] for key in keys]
        return Embedding(
            np.concatenate(features),
            np.concatenate(targets),
            spec,
            np.unique(participants, return_inverse=True)[1],
            dataset.manifest.splits.training(participants),
        )
    finally:
        dataset.source.close()


@torch.no_grad()
def pooled(model: Any, image_BCHW: Tensor, pool: Pool) -> Tensor:
    """Return one feature per image, (B, D), of normalised images; `model` is one of timm's."""
    tokens_BND = model.forward_features(image_BCHW)
    return tokens_BND[:, model.num_prefix_tokens :].mean(1) if pool == "mean" else tokens_BND[:, 0]
