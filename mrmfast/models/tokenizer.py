"""A codebook of patches: the tokenizer of mc-BEiT, in place of the published one, whose weights cannot be shipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.models.ema import never_narrower
from mrmfast.models.patch_embed import normalise, patchify

REMEDY = "train one with: mrmfast tokenizer --config CONFIG --out FILE"


class Tokenizer(nn.Module):
    """Logits of codes for each patch: minus the squared distance to a code, over a scale.

    It stays float32 for every precision of training, and is no part of a checkpoint: it never changes.

    Parameters
    ----------
    codes_VP : Tensor, (V, cell * cell * 3)
        Normalised pixels in (row, column, channel) order.
    scale : float
        A logit is the squared distance over this.
    cell : int
        Pixels a side, at half the image's resolution, as published (112 for an image of 224).
    """

    codes: Tensor

    def __init__(self, codes_VP: Tensor, scale: float, cell: int) -> None:
        super().__init__()
        self.scale, self.cell = scale, cell
        self.register_buffer("codes", codes_VP.float(), persistent=False)

    def patches(self, image_BCHW: Tensor) -> Tensor:
        """Return what codes are compared with: uint8 or normalised, (B, 3, S, S), to (B, patches, cell * cell * 3)."""
        return patchify(avg_pool2d(normalise(image_BCHW), 2), self.cell)

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Compute logits, float32: (B, 3, S, S) to (B, patches, V)."""
        return self.logits(self.patches(image_BCHW))

    def logits(self, patches: Tensor) -> Tensor:
        """Compare patches with codes: (..., cell * cell * 3) to (..., V)."""
        # |x - c|^2 without |x|^2, which is the same for all codes.
        return (2 * patches @ self.codes.T - self.codes.square().sum(1)) / self.scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Tokenizer:
        """Follow the model to a device, not to a narrower precision."""
        applied: Tokenizer = super()._apply(never_narrower(fn), recurse)
        return applied


def random_tokenizer(codes: int, cell: int) -> Tokenizer:
    """Make a codebook of random smooth patches, the same in every run: it needs no training images."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randn(codes, 3, 2, 2, generator=generator)
    smooth = interpolate(corners, (cell, cell), mode="bilinear", align_corners=True)
    return Tokenizer(smooth.permute(0, 2, 3, 1).flatten(1), scale=3 * cell**2 / 4, cell=cell)


def write_tokenizer(path: Path, tokenizer: Tokenizer, facts: dict[str, Any]) -> str:
    """Write a codebook, and beside it a JSON file with its digest; return the SHA-256 digest.

    Parameters
    ----------
    path : Path
        Ends with ``.safetensors``.
    tokenizer : Tokenizer
    facts : dict
        Further entries of the JSON file: how it was trained, its perplexity.
    """
    content = save({"codes": tokenizer.codes.cpu().contiguous()}, metadata={"format": "pt"})
    digest = hashlib.sha256(content).hexdigest()
    with write_aside(path, "wb") as file:
        file.write(content)
    with write_aside(path.with_suffix(".json")) as text:
        json.dump({"sha256": digest, "scale": tokenizer.scale, "cell": tokenizer.cell, **facts}, text, indent=1)
    return digest


def read_tokenizer(path: Path, sha256: str | None = None) -> Tokenizer:
    """Read a codebook.

    Parameters
    ----------
    path : Path
    sha256 : str, optional
        What its digest has to be; that of its JSON file is compared in any case.

    Raises
    ------
    UserError
        A file is missing or damaged, or the digest differs.
    """
    try:
        content = path.read_bytes()
        facts = json.loads(path.with_suffix(".json").read_text())
        recorded, scale, cell = str(facts["sha256"]), float(facts["scale"]), int(facts["cell"])
    except FileNotFoundError as error:
        raise UserError(f"objective.tokenizer.file={path}: {error.filename} is missing; {REMEDY}") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"objective.tokenizer.file={path}: not a tokenizer ({error}); {REMEDY}") from error
    digest = hashlib.sha256(content).hexdigest()
    for expected, source in ((recorded, path.with_suffix(".json").name), (sha256, "objective.tokenizer.sha256")):
        if expected is not None and digest != expected:
            raise UserError(
                f"objective.tokenizer.file={path}: SHA-256 is {digest}, {source} says {expected}; take the file that "
                "the run began with, or train a tokenizer anew"
            )
    try:
        codes = load(content)["codes"]
    except (SafetensorError, KeyError) as error:
        raise UserError(f"objective.tokenizer.file={path}: not a tokenizer ({error}); {REMEDY}") from error
    if codes.ndim != 2 or codes.shape[1] != 3 * cell**2 or not scale > 0:
        raise UserError(f"objective.tokenizer.file={path}: its codes do not fit patches of {cell} pixels; {REMEDY}")
    return Tokenizer(codes, scale, cell)
