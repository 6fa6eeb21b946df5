"""Random numbers without a generator: each is a hash of what it is for, so any of them can be drawn at any time."""

from __future__ import annotations

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
# Turns of the network of `permute`. With six, a chi-squared test of 40,000 keys tells that the orders of four things
# and the steps between neighbours among a hundred are not equally likely. With eight it cannot. For the orders of five
# it still can, and that takes sixteen, at half the speed.
ROUNDS = 8


def _mix(value: np.ndarray) -> np.ndarray:
    """Scramble uint64 values (SplitMix64 finaliser, Steele, Lea and Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hashed(seed: int, stream: int, *parts: np.ndarray) -> np.ndarray:
    """Hash integers.

    Parameters
    ----------
    seed : int
    stream : int
        What the number is for; different streams are independent.
    *parts : ndarray of int, shape (n,)
        At least one.

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    state = np.full(len(parts[-1]), (seed * GOLDEN + stream) & MASK, dtype=np.uint64)
    for part in parts:
        state = _mix(state + np.asarray(part).astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(1))
    return state


def uniform(seed: int, epoch: np.ndarray, sample: np.ndarray, stream: int) -> np.ndarray:
    """Draw one number in [0, 1) per sample as a pure function of its arguments.

    Parameters
    ----------
    seed : int
    epoch, sample : ndarray of int, shape (n,)
    stream : int
        Distinguishes independent draws (angle, flip, ...) of the same sample.

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    return (hashed(seed, stream, epoch, sample) >> np.uint64(11)).astype(np.float64) / 2.0**53


def permute(place: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Send each place to where a shuffle keyed by `key` puts it: a bijection of 0 .. size - 1, without storing it.

    A generalised Feistel network on the smallest a x b rectangle with a about equal to b, walked on until it lands
    inside `size` (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, methods 2 and 3).

    Parameters
    ----------
    place : ndarray of int64, shape (n,)
        Each in 0 .. size - 1.
    size : ndarray of int64, shape (n,)
        Number of things shuffled; below 2^62.
    key : ndarray of uint64, shape (n,)

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    a = np.maximum(1, np.ceil(np.sqrt(size))).astype(np.uint64)
    size = size.astype(np.uint64)
    b = (size + a - np.uint64(1)) // a
    here = _network(place.astype(np.uint64), a, b, key)
    outside = np.flatnonzero(here >= size)
    while len(outside):
        here[outside] = _network(here[outside], a[outside], b[outside], key[outside])
        outside = outside[here[outside] >= size[outside]]
    return here.astype(np.int64)


def _network(here: np.ndarray, a: np.ndarray, b: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return one bijection of 0 .. a * b - 1: in turns, each coordinate moves by a hash of the other."""
    high = here // b
    low = here - high * b
    sides, half = [high, low], np.uint64(32)
    for turn in range(ROUNDS):
        side, other, length = turn % 2, 1 - turn % 2, (a, b)[turn % 2]
        salt = np.uint64((turn + 1) * GOLDEN & MASK)
        step = _mix((sides[other] + salt) * np.uint64(0xD6E8FEB86659FD93) ^ key)
        # The upper half of the hash as a fraction of `length`, then once round: cheaper than a remainder.
        moved = sides[side] + ((step >> half) * length >> half)
        sides[side] = np.where(moved >= length, moved - length, moved)
    return sides[0] * b + sides[1]
