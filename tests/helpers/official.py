"""Numbers of published implementations: weights and inputs by an integer formula, losses as they computed them.

``tests/golden/official/*.json`` say which repository, at which commit, and what was run.
"""

import json
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "official"
PRIME = 65521
SCALES = {"bias": 0.1, "norm_b": 0.1, "token": 0.5}


def cases(method):
    """The cases of a method by name."""
    return {case["name"]: case for case in json.loads((FOLDER / f"{method}.json").read_text())["cases"]}


def _residues(k, phase, shape):
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    return ((31 * (i * i % PRIME) + i * (20011 + 2 * k) + 7919 * k + 104729 * phase) % PRIME).view(*shape)


def symmetric(k, phase, shape):
    """u: float64 in [-1, 1)."""
    return 2 * _residues(k, phase, shape).double() / PRIME - 1


def positive(k, phase, shape):
    """w: float64 in (0, 1)."""
    return (_residues(k, phase, shape).double() + 0.5) / PRIME


def image(k, phase, shape):
    """An image with structure."""
    b, ch, y, x = (
        torch.arange(size).view([-1 if axis == n else 1 for axis in range(4)]) for n, size in enumerate(shape)
    )
    scale = 0.5 + ((b + 2 * ch + y // 8 + x // 8) % 5) / 4
    return scale * symmetric(k, phase, shape) + 0.25 * ((y // 8 - x // 8) % 3 - 1)


@torch.no_grad()
def fill(case, parameters):
    """Set parameters, a dict by the published names, to the case's values."""
    names = [name for _, name, _, _ in case["params"]]
    assert sorted(names) == sorted(parameters)
    for k, name, shape, kind in case["params"]:
        u = symmetric(k, case["phase"], shape)
        if kind == "matrix":
            u = u * 1.7 / torch.Size(shape[1:]).numel() ** 0.5
        else:
            u = 1 + 0.2 * u if kind == "norm_w" else SCALES[kind] * u
        parameters[name].copy_(u.view_as(parameters[name]))


def off(tensor, stat):
    """The largest difference of a tensor to what the file says of it, relative to its norm."""
    flat = tensor.detach().flatten()
    norm = stat["l2"]
    pairs = [
        (flat.sum(), stat["sum"]),
        (flat.norm(), norm),
        *zip(flat[:5], stat["first5"], strict=True),
        *zip(flat[-3:], stat["last3"], strict=True),
    ]
    return max(abs(float(value) - published) for value, published in pairs) / norm
