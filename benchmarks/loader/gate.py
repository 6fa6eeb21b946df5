"""What has to be right before the loader's speed counts: images, order, floats, genetics; each by another library."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import torch
import zarr
from PIL import Image

from benchmarks.harness import Bench
from benchmarks.peers.ours import open_loader
from benchmarks.peers.pillow import jpegs
from benchmarks.peers.process import Process
from benchmarks.peers.task import ANGLE, FLIP, MEAN, STD, Task
from mrmfast.batch import ViewSpec
from mrmfast.data.images.augment import draw_matrices

PICTURES, TOLERANCE = 100, 2.0  # of 255, mean absolute difference
NEAR = 0.1  # of the mean of all pixels; peers draw their own angles


def check(bench: Bench, task: Task) -> None:
    """Compare an epoch of ours with Pillow and zarr-python.

    Raises
    ------
    GateError
        They differ.
    """
    label = f"{task.stored} px"
    loader = open_loader(replace(task, pixels="uint8", genetics=True))
    spec, store, table = loader.dataset.genome_spec(), loader.dataset.store, loader.dataset.table
    assert spec is not None and store is not None
    rows = [_stored(task, modality.name) for modality in store.modalities]
    stored = jpegs(task)
    differences: list[float] = []
    keys: list[str] = []
    right = True
    for batch in loader.batches(0, task.tiles):
        samples = [int(key) for key in batch.keys]
        if len(differences) < PICTURES:
            piece = loader.plan.take(len(keys), len(samples), set())
            matrices = draw_matrices(piece, ViewSpec(task.size, None, ANGLE, FLIP), seed=0)
            assert piece.sample.tolist() == samples
            pictures = batch.views[0].permute(0, 2, 3, 1).numpy().astype(int)
            for sample, matrix, picture in zip(samples, matrices, pictures, strict=True):
                differences.append(np.abs(picture - _by_pillow(stored[sample], matrix, task)).mean())
        for (ids, values), packed in zip(rows, batch.packed, strict=True):
            found = values[[ids[one] for one in table.participant[samples].tolist()]]
            right &= np.array_equal(packed.numpy().view(np.uint8), found.view(np.uint8))
        keys += batch.keys
    mean = float(np.mean(differences[:PICTURES]))
    bench.figure(f"{label}: ours and Pillow, mean difference of {PICTURES} pictures", mean, "of 255")
    bench.gate(f"{label}: pictures are Pillow's within {TOLERANCE:g}/255", mean <= TOLERANCE)
    bench.gate(f"{label}: every sample once", sorted(keys) == sorted(table.key.tolist()))
    bench.gate(f"{label}: {spec.n_features:,} features are those of zarr-python, row by row", right)
    bytes_, floats = (
        torch.cat([b.views[0] for b in open_loader(replace(task, pixels=pixels)).batches(0, 2 * PICTURES)])
        for pixels in ("uint8", "float32")
    )
    mean_C, std_C = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    expected = (bytes_.float() / 255 - mean_C) / std_C
    bench.gate(f"{label}: floats are the bytes, normalised", torch.allclose(floats, expected, atol=1e-5))


def _by_pillow(jpeg: bytes, matrix: np.ndarray, task: Task) -> np.ndarray:
    image: Image.Image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    if task.stored != task.size:
        image = image.resize((task.size, task.size), Image.Resampling.BILINEAR)
    coefficients = tuple(matrix.astype(float).ravel().tolist())
    warped = image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(warped)


def _stored(task: Task, name: str) -> tuple[dict[str, int], np.ndarray]:
    group = zarr.open_group(task.dataset / "genetics.zarr" / name, mode="r")
    ids = {str(one): number for number, one in enumerate(np.asarray(group["participants"]).tolist())}
    return ids, np.asarray(group["rows"])


def check_peer(bench: Bench, name: str, process: Process, task: Task, mean: float) -> None:
    """Hold a peer to the same work: as many images, their shape and type, and about the same mean of all pixels.

    Which images they are is not compared: peers hand over pixels that they turned as they like, without a key.

    Raises
    ------
    GateError
        It does something else.
    """
    first = process.first
    same = first["pictures"] == task.tiles and first["shape"] == [3, task.size, task.size]
    same = same and first["dtype"] == task.pixels and abs(first["mean"] - mean) <= NEAR * max(1.0, abs(mean))
    bench.gate(
        f"{task.stored} px: {name} gives {task.tiles} pictures, {task.pixels} (3, {task.size}, {task.size})", same
    )
