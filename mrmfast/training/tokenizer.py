"""Training of mc-BEiT's tokenizer: a codebook of patches by k-means on the training images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrmfast.arithmetic import ceil_div
from mrmfast.data.dataset import open_dataset
from mrmfast.data.loader import Loader
from mrmfast.errors import UserError
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.models.tokenizer import Tokenizer, write_tokenizer
from mrmfast.training.settings import TrainConfig

# Every tenth patch is not trained on; perplexity and scale are those of such patches.
HELD_OUT = 10
# Fewer images would show less of the data; more patches of one image tell little.
PATCHES_PER_IMAGE = 16
# The published temperature; the scale spreads a target over so many codes there [ours].
TEMPERATURE, SPREAD = 4.0, 8.0


def train_tokenizer(config: TrainConfig, out: Path, codes: int, patches: int) -> dict[str, Any]:
    """Train a codebook on images of the config's split, and write it.

    Parameters
    ----------
    config : TrainConfig
        ``data``, ``model.arch`` (its patch size) and ``seed``.
    out : Path
        Ends with ``.safetensors``; a JSON file is written beside it.
    codes, patches : int
        Entries of the codebook; patches that are drawn.

    Returns
    -------
    dict
        The JSON file's entries: digest, perplexity and what it was trained on.

    Raises
    ------
    UserError
        Too few patches for so many codes, a wrong name, or a dataset that cannot be read.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: the name has to end with .safetensors")
    patch = ImageEncoder(config.model.arch, config.data.image_size, 1).patch
    if patch % 2:
        raise UserError(f"model.arch={config.model.arch}: the tokenizer needs an even patch size, not {patch}")
    sample = np.concatenate(list(draw_patches(config, patch // 2, patches)))[:patches]
    held_out = np.arange(len(sample)) % HELD_OUT == 0
    training = sample[~held_out]
    if len(training) < codes:
        raise UserError(
            f"--codes {codes}: the images gave {len(training)} patches to train on; take fewer codes, or raise "
            "--patches"
        )
    book = torch.from_numpy(fit_codes(training, codes, config.seed))
    tokenizer = Tokenizer(book, 1.0, patch // 2)
    test = torch.from_numpy(sample[held_out])
    tokenizer.scale = choose_scale(tokenizer, test, min(SPREAD, codes / 2))
    facts = {
        "what": "k-means codebook of patches, a replacement of mc-BEiT's published tokenizer",
        "codes": codes,
        "patches": len(training),
        "split": config.data.split,
        "image_size": config.data.image_size,
        "seed": config.seed,
        "held_out_patches": len(test),
        "perplexity": perplexity(nearest_codes(tokenizer, test), codes),
    }
    facts["sha256"] = write_tokenizer(out, tokenizer, facts)
    return facts


def draw_patches(config: TrainConfig, cell: int, patches: int) -> Iterator[np.ndarray]:
    """Yield random patches of the first images of the stream, (n, cell * cell * 3) each, at most one epoch."""
    dataset = open_dataset(config.data).images_alone()
    batch = min(config.batch_size, 64)
    device = torch.device("cpu")
    loader = Loader(
        dataset, config.data, seed=config.seed, batch=batch, micro_batch=batch, rank=0, world=1, device=device
    )
    epoch = len(loader.sampler)
    grid = config.data.image_size // (2 * cell)
    each = min(grid**2, max(PATCHES_PER_IMAGE, ceil_div(patches, epoch)))
    images = min(epoch, ceil_div(patches, each))
    cutter = Tokenizer(torch.zeros(1, 3 * cell**2), 1.0, cell)
    generator = torch.Generator().manual_seed(config.seed)
    for step in loader.batches(0, end=images):
        cut_BNP = cutter.patches(step.views[0].cpu())
        order_BN = torch.rand(cut_BNP.shape[:2], generator=generator).argsort(1)[:, :each]
        yield cut_BNP.gather(1, order_BN[..., None].expand(-1, -1, cut_BNP.shape[-1])).flatten(0, 1).numpy()


def fit_codes(patches: np.ndarray, codes: int, seed: int) -> np.ndarray:
    """Cluster patches by k-means (scikit-learn's MiniBatchKMeans): (n, P) to (codes, P)."""
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise UserError("scikit-learn is not installed; add it: pip install 'mrmfast[tokenizer]'") from None
    # Random starts: k-means++ compares every patch with every code before the first step.
    model = MiniBatchKMeans(codes, init="random", batch_size=4096, n_init=1, random_state=seed)
    centres: np.ndarray = model.fit(patches).cluster_centers_
    return centres.astype(np.float32)


def nearest_codes(tokenizer: Tokenizer, patches_NP: Tensor) -> Tensor:
    """Return the number of the nearest code of each patch: int64, (n,)."""
    return torch.cat([tokenizer.logits(part).argmax(1) for part in patches_NP.split(1024)])


def perplexity(chosen: Tensor, codes: int) -> float:
    """Return exp(entropy) of how often each code is chosen: `codes` if all are equally frequent."""
    share = torch.bincount(chosen, minlength=codes) / len(chosen)
    return float(torch.special.entr(share.double()).sum().exp())


def choose_scale(tokenizer: Tokenizer, patches_NP: Tensor, spread: float) -> float:
    """Return the scale with which a target at the published temperature spreads over `spread` codes (exp of entropy).

    Parameters
    ----------
    tokenizer : Tokenizer
    patches_NP : Tensor, (n, P)
        The first 512 are used.
    spread : float
    """
    unscaled = tokenizer.logits(patches_NP[:512]) * tokenizer.scale / TEMPERATURE
    low, high = 1e-6, 1e6
    for _ in range(60):
        middle = math.sqrt(low * high)
        entropy = torch.special.entr((unscaled.double() / middle).softmax(1)).sum(1).mean()
        low, high = (middle, high) if entropy.exp() < spread else (low, middle)
    return math.sqrt(low * high)
