"""Masks as tar members: ``KEY.mask.png`` or ``KEY.NAME.mask.png``, one channel per structure."""

from __future__ import annotations

import re
import struct

from mrmfast.errors import UserError

MASK = "mask.png"


def mask_extension(name: str) -> str:
    """Return the extension of a mask's tar member; the opposite of :func:`mask_name`."""
    if not re.fullmatch(r"[a-z0-9_-]+", name):
        raise UserError(f"mask {name!r}: a name has only small letters, digits, hyphens and underscores")
    return MASK if name == "mask" else f"{name}.{MASK}"


def mask_name(extension: str) -> str | None:
    """Return which mask a tar member is, None if it is none: ``mask.png`` and ``NAME.mask.png`` are masks."""
    name, _, rest = extension.partition(".")
    if extension == MASK:
        return "mask"
    return name if rest == MASK and re.fullmatch(r"[a-z0-9_-]+", name) else None


def mask_channels(png: bytes) -> int | None:
    """Return the channels of a PNG that can be a mask: whole, 8 bits a channel, no palette; None if it cannot be."""
    if len(png) < 45 or png[:8] != b"\x89PNG\r\n\x1a\n" or png[-8:-4] != b"IEND":
        return None
    bits, colour = struct.unpack(">BB", png[24:26])
    return {0: 1, 2: 3, 6: 4}.get(colour) if bits == 8 else None
