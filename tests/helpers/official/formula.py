"""Weights and inputs of the golden cases: an integer formula, independent of any random generator (see ``recipe``)."""

import torch

PRIME = 65521
SCALES = {"bias": (0.0, 0.1), "norm_b": (0.0, 0.1), "token": (0.0, 0.5), "norm_w": (1.0, 0.2), "g": (1.0, 0.2)} | {
    "gamma": (0.5, 0.2)
}


def _residues(k, phase, shape):
    count = torch.Size(shape).numel()
    i = torch.arange(min(count, PRIME), dtype=torch.int64)
    period = (31 * (i * i % PRIME) + i * (20011 + 2 * k) + 7919 * k + 104729 * phase) % PRIME  # i counts modulo PRIME
    return period.repeat((count + PRIME - 1) // PRIME)[:count].view(*shape)


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


def value(k, phase, shape, kind):
    """A parameter of a kind."""
    u = symmetric(k, phase, shape)
    if kind == "matrix":
        return u * 1.7 / torch.Size(shape[1:]).numel() ** 0.5
    base, scale = SCALES[kind]
    return base + scale * u


@torch.no_grad()
def fill(case, parameters, rows="params"):
    """Set parameters, a dict by the published names, to the values of a case.

    Both sides have the same names, so nothing of the published model is missing and nothing else is left at random.
    """
    names = [name for _, name, _, _ in case[rows]]
    assert sorted(names) == sorted(parameters), set(names) ^ set(parameters)
    for k, name, shape, kind in case[rows]:
        parameters[name].copy_(value(k, case["phase"], shape, kind).view_as(parameters[name]))
