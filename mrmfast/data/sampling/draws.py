"""Random numbers without a generator: each number is a hash of its purpose, so numbers can be drawn in any order.

Examples
--------
A generator has a state, so that number 5 needs numbers 0 to 4 first. A hash has none: the angle of sample 7 in epoch 2
is the same number whether it is drawn alone or with others.

>>> alone = uniform(0, np.array([2]), np.array([7]), stream=1)
>>> both = uniform(0, np.array([2, 2]), np.array([3, 7]), stream=1)
>>> bool(alone[0] == both[1])
True
"""

from __future__ import annotations

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
# Rounds of the Feistel network of `permute`. Chi-squared tests of 40,000 keys reject uniformity for six rounds: the
# orders of four elements and the distances of neighbours among a hundred are not equally likely. They do not reject it
# for eight rounds. For the orders of five elements they need sixteen rounds, at half the speed.
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
        Purpose of the number; different streams are independent.
    *parts : ndarray of int, shape (n,)
        At least one array.

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


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Permute indices by a pseudo-random bijection of 0 .. size - 1, which is computed and not stored.

    The bijection is a generalised Feistel network on the smallest a x b rectangle with a about equal to b. Where the
    network leaves 0 .. size - 1, it is applied again until it returns (Black and Rogaway, "Ciphers with arbitrary
    finite domains", CT-RSA 2002, methods 2 and 3).

    Parameters
    ----------
    index : ndarray of int64, shape (n,)
        Each in 0 .. size - 1.
    size : ndarray of int64, shape (n,)
        Number of permuted elements; below 2^62.
    key : ndarray of uint64, shape (n,)
        Selects the bijection.

    Returns
    -------
    ndarray of int64, shape (n,)

    Examples
    --------
    >>> shuffled = permute(np.arange(6), np.full(6, 6), np.full(6, 42, np.uint64))
    >>> sorted(shuffled.tolist())
    [0, 1, 2, 3, 4, 5]
    """
    a = np.maximum(1, np.ceil(np.sqrt(size))).astype(np.uint64)
    size = size.astype(np.uint64)
    b = (size + a - np.uint64(1)) // a
    permuted = _network(index.astype(np.uint64), a, b, key)
    outside = np.flatnonzero(permuted >= size)
    while len(outside):
        permuted[outside] = _network(permuted[outside], a[outside], b[outside], key[outside])
        outside = outside[permuted[outside] >= size[outside]]
    return permuted.astype(np.int64)


def _network(index: np.ndarray, a: np.ndarray, b: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Apply a bijection of 0 .. a * b - 1: alternately, each coordinate is shifted by a hash of the other."""
    high = index // b
    low = index - high * b
    sides, half = [high, low], np.uint64(32)
    for number in range(ROUNDS):
        side, other, length = number % 2, 1 - number % 2, (a, b)[number % 2]
        salt = np.uint64((number + 1) * GOLDEN & MASK)
        step = _mix((sides[other] + salt) * np.uint64(0xD6E8FEB86659FD93) ^ key)
        # The upper half of the hash as a fraction of `length`, and one subtraction: cheaper than a remainder.
        moved = sides[side] + ((step >> half) * length >> half)
        sides[side] = np.where(moved >= length, moved - length, moved)
    return sides[0] * b + sides[1]
