"""Our models at the sizes of a case, in float64."""

from contextlib import contextmanager

import torch

from mrmfast.models.image_encoder import ImageEncoder

BASE = "vit_base_patch16_224"


@contextmanager
def float64():
    """Build in float64 from the start: fixed positions are not rounded to float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_encoder(sizes, **arguments):
    """Build the image encoder of a case's ``sizes``; further arguments are those of :class:`ImageEncoder`."""
    return ImageEncoder(
        BASE,
        sizes["img_size"],
        sizes["depth"],
        **arguments,
        patch_size=sizes["patch"],
        embed_dim=sizes["width"],
        num_heads=sizes["heads"],
        mlp_ratio=sizes["mlp_ratio"],
    )


def published_encoder(encoder, prefix=""):
    """Return the encoder's trainable parameters by timm's names, which the files use."""
    return {
        prefix + name.removeprefix("tokens."): p for name, p in encoder.named_parameters() if p.requires_grad
    }
