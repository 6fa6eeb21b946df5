"""Inputs whose formula a case states as text: ``floor(3*w)``, ``1.5*u``, ``max(0, 1.2*u)``."""

import re

from tests.helpers.official.formula import positive, symmetric

NUMBER = r"(\d+(?:\.\d+)?)"


def stated(text):
    """Return the function of (k, phase, shape) that a text begins with."""
    text = text.split(",", 1)[0] if not text.startswith("max") else text
    if text in ("u", "w"):
        return symmetric if text == "u" else positive
    if match := re.fullmatch(rf"floor\({NUMBER}\*w\)", text):
        return lambda *where: (float(match[1]) * positive(*where)).floor()
    if match := re.fullmatch(rf"{NUMBER}\*u", text):
        return lambda *where: float(match[1]) * symmetric(*where)
    if match := re.fullmatch(rf"max\(0, {NUMBER}\*u\)", text):
        return lambda *where: (float(match[1]) * symmetric(*where)).clamp(min=0)
    raise ValueError(f"no formula: {text!r}")
