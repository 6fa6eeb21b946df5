"""Draws and the bijection: pure, uniform, independent."""

from math import factorial

import numpy as np
import pytest

from mrmfast.data.sampling.draws import hashed, permute, uniform


def shuffles(n, keys):
    """One shuffle of n places per key, shape (keys, n)."""
    key = hashed(1, 0, np.arange(keys)).repeat(n)
    return permute(np.tile(np.arange(n), keys), np.full(n * keys, n), key).reshape(keys, n)


def excess(counts, cells):
    """Chi-squared over `cells` equally likely cells, in standard deviations from what chance gives."""
    expected = counts.sum() / cells
    chi = ((counts - expected) ** 2 / expected).sum() + (cells - len(counts)) * expected
    return (chi - (cells - 1)) / np.sqrt(2 * (cells - 1))


def test_draws_are_pure_uniform_and_independent():
    sample, epoch = np.arange(20_000), np.zeros(20_000, int)
    angle, flip = uniform(1, epoch, sample, 0), uniform(1, epoch, sample, 1)
    assert np.array_equal(angle[[7, 3]], uniform(1, epoch[:2], np.array([7, 3]), 0))
    # Kolmogorov-Smirnov at 20,000 draws: 1.63 / sqrt(n) is the 1 % bound.
    assert np.abs(np.sort(angle) - np.linspace(0, 1, 20_000)).max() < 1.63 / np.sqrt(20_000)
    assert abs(np.corrcoef(angle, flip)[0, 1]) < 0.03
    assert abs(np.corrcoef(angle, uniform(1, epoch + 1, sample, 0))[0, 1]) < 0.03
    assert abs(np.corrcoef(angle, uniform(2, epoch, sample, 0))[0, 1]) < 0.03


def test_draws_stay_what_they_were():
    """A resumed run must draw what the version before drew."""
    drawn = uniform(1, np.array([0, 3]), np.array([7, 1 << 40]), 1)
    assert drawn.tolist() == GOLDEN_DRAWS
    assert permute(np.arange(7), np.full(7, 7), np.full(7, 5, np.uint64)).tolist() == GOLDEN_ORDER


GOLDEN_DRAWS = [0.23831837961436253, 0.4983776495964689]
GOLDEN_ORDER = [2, 5, 6, 4, 0, 3, 1]


@pytest.mark.parametrize("n", [*range(1, 40), 99, 100, 101, 1023, 1024, 1025, 30_011])
def test_a_shuffle_is_a_bijection(n):
    for order in shuffles(n, 3):
        assert np.array_equal(np.sort(order), np.arange(n))


def test_places_of_one_call_may_belong_to_sets_of_different_size():
    size, key = np.array([1, 5, 1000, 10**8, 2**61]), hashed(0, 0, np.arange(5))
    place = size - 1
    together = permute(place, size, key)
    assert (together < size).all() and (together >= 0).all()
    assert together.tolist() == [permute(*(a[i : i + 1] for a in (place, size, key)))[0] for i in range(5)]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_orders_of_few_things_are_equally_likely(n):
    _, counts = np.unique(shuffles(n, 20_000) @ (n ** np.arange(n)), return_counts=True)
    assert excess(counts, factorial(n)) < 4


def test_orders_of_many_things_look_random():
    n, keys = 100, 5_000
    orders = shuffles(n, keys)
    where = np.bincount((orders + n * np.arange(n)).ravel(), minlength=n * n)  # every thing at every place
    steps = np.bincount((np.diff(orders, axis=1) % n).ravel(), minlength=n)[1:]
    still = (orders == np.arange(n)).sum(1)  # Poisson of mean one
    assert abs(excess(where, n * n)) < 4
    assert abs(excess(steps, n - 1)) < 4
    assert abs(still.mean() - 1) < 0.06 and abs(still.var() - 1) < 0.12
    large = shuffles(100_003, 2)
    assert abs(np.corrcoef(large[0], np.arange(100_003))[0, 1]) < 0.013
    assert abs(np.corrcoef(large[0], large[1])[0, 1]) < 0.013
    assert abs(np.corrcoef(large[0][1:], large[0][:-1])[0, 1]) < 0.013
