"""Schedules as functions of the step: this package's, and those of published codes.

Each takes the step (a fraction where the published code has fractional epochs), the run's steps, the share of them that
warms up, and the last rate; it returns the rate as a share of the peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

ScheduleName = Literal["cosine", "mae", "dino", "simmim"]

# SimMIM's: the first rate is 5e-7 of 1e-4, and the rate falls at epoch 700 of 800.
_SIMMIM_START, _SIMMIM_FALL = 5e-3, 7 / 8


def half_cosine(first: float, last: float, progress: float) -> float:
    """Return the value at `progress`, 0 to 1, on half a cosine from `first` to `last`."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * min(progress, 1.0)))


def cosine(step: float, steps: int, warmup: float, final: float) -> float:
    """Rise from 1 / warm-up steps, so that the first step is a step, not a pause; then half a cosine."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return 1 / rising + step * (1 - 1 / rising) / rising
    return half_cosine(1.0, final, (step - rising) / max(1, steps - rising))


def mae(step: float, steps: int, warmup: float, final: float) -> float:
    """Rise from 0, then half a cosine (MAE, MoCo v3)."""
    rising = warmup * steps
    return step / rising if step < rising else half_cosine(1.0, final, (step - rising) / max(1, steps - rising))


def dino(step: float, steps: int, warmup: float, final: float) -> float:
    """Rise from 0 to the peak within the warm-up, then half a cosine, so the peak comes twice (DINO, iBOT, BEiT)."""
    rising = round(warmup * steps)
    if step < rising:
        return step / max(1, rising - 1)
    return half_cosine(1.0, final, (step - rising) / max(1, steps - rising))


def simmim(step: float, steps: int, warmup: float, final: float) -> float:
    """Rise from 0.005, stay at the peak, and be `final` from 7/8 of the run on (SimMIM).

    The published code sets the rate after a step, from the number of that step, so each rate comes one step late.
    """
    done, rising = max(0.0, step - 1), warmup * steps
    if done < rising:
        return _SIMMIM_START + (1 - _SIMMIM_START) * done / rising
    return 1.0 if done < _SIMMIM_FALL * steps else final


SCHEDULES: dict[ScheduleName, Callable[[float, int, float, float], float]] = {
    "cosine": cosine,
    "mae": mae,
    "dino": dino,
    "simmim": simmim,
}
