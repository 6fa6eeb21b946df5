"""What tests of the image backends share."""

import cv2
import numpy as np
import torch

from mrmfast.batch import ViewSpec
from mrmfast.data.images.augment import resolve_views, warp_matrices
from mrmfast.data.images.backend import DecodeRequest, DecodeSpec, open_images
from mrmfast.meters import Meters

CPU = torch.device("cpu")


def smooth_image(seed, size=64, channels=3):
    """A random smooth image, uint8, shape (size, size, channels)."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, channels), dtype=np.uint8)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)


def encode(image, extension=".jpg", *options):
    """Bytes of an image file."""
    return np.frombuffer(cv2.imencode(extension, image, [cv2.IMWRITE_JPEG_QUALITY, 95, *options])[1], np.uint8)


def straight(count, size):
    """Matrices that change nothing."""
    return warp_matrices(np.zeros(count), np.zeros(count, bool), size)


def spec_for(*, size=64, stored=64, batch=4, views=None, device=CPU, threads=2, depth=2, pixels="uint8", masks=()):
    """What a backend is opened with; one plain view of `size` where no views are given."""
    views = resolve_views(views or (ViewSpec(),), size=size, rotation=0.0, flip=0.0)
    return DecodeSpec(views, batch, stored, device, threads, depth, pixels, masks)


def open_backend(backend, source, **settings):
    """Open a backend as :func:`spec_for` says."""
    return open_images(backend, source, spec_for(**settings), Meters())


def decode_batch(backend, request, **settings):
    """Send one batch through a backend."""
    images = open_backend(backend, lambda: request, batch=len(request.jpegs), **settings)
    try:
        return images.run()
    finally:
        images.close()


def decode(backend, jpegs, *, size=64, matrices=None, **settings):
    """One plain view of one batch, channels last, and which images cannot be decoded."""
    matrices = straight(len(jpegs), size) if matrices is None else matrices
    decoded = decode_batch(backend, DecodeRequest(jpegs, (matrices,)), size=size, **settings)
    return decoded.views[0].permute(0, 2, 3, 1).numpy(), decoded.bad
