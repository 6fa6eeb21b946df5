"""Sparse weights x genotypes in C against the plain product."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from preprocess.genetics.pgs import sparse_product
from preprocess.genetics.pgs.score_pass import ScorePass, Weights


@pytest.fixture(autouse=True)
def compiled():
    """Load the kernel anew: an earlier test of this process may have made its first load fail on purpose."""
    sparse_product.library.cache_clear()


def genotypes(dtype: type, variants: int, participants: int) -> np.ndarray:
    """Draw values with missing ones, one variant without any call."""
    rng = np.random.default_rng(0)
    if dtype is np.int8:
        values = rng.integers(-1, 3, (variants, participants)).astype(np.int8)
        values[values == -1] = -9
    else:
        values = rng.uniform(0, 2, (variants, participants)).astype(np.float32)
        values[rng.random(values.shape) < 0.1] = np.nan
    values[3] = -9 if dtype is np.int8 else np.nan
    return values


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("participants", [1, 63, 64, 200, 5000])
def test_sparse_product_equals_the_plain_one(dtype, participants):
    values = genotypes(dtype, 37, participants)
    rng = np.random.default_rng(1)
    train = rng.random(participants) < 0.7
    assert sparse_product.takes(values), "no C compiler"
    assert not sparse_product.takes(values.astype(np.float64))
    total, known = sparse_product.fit(values, train)
    there = values >= 0
    np.testing.assert_allclose(total, np.where(there & train, values, 0).sum(axis=1, dtype=float), rtol=1e-12)
    np.testing.assert_array_equal(known, (there & train).sum(axis=1))
    expected = rng.random(37)
    weights = rng.standard_normal((6, 37)) * (rng.random((6, 37)) < 0.2)
    weights[2] = 0
    score, variant = np.nonzero(weights)
    begin = np.append(0, np.cumsum((weights != 0).sum(axis=1)))
    order = np.array([4, 0, 6, 2, 1, 5])
    sums = np.ones((7, participants))
    missing = sparse_product.add(values, expected, order, begin, variant, weights[score, variant], sums)
    assert missing == (~there).sum()
    plain = np.ones((7, participants))
    plain[order] += weights @ np.where(there, values.astype(float), expected[:, None])
    np.testing.assert_allclose(sums, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hard_calls", [True, False])
@pytest.mark.parametrize("memory", [2 << 30, 300_000])
def test_a_pass_gives_the_same_with_and_without_the_compiled_product(monkeypatch, hard_calls, memory):
    values = genotypes(np.int8 if hard_calls else np.float32, 400, 5000)

    def read(variants: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        return values[variants] if rows is None else values[variants][:, rows]

    fake = cast(Any, SimpleNamespace(hard_calls=read, dosages=read, variants=np.arange(400)))
    rng = np.random.default_rng(2)
    weights = Weights()
    for count in (40, 7, 60):
        chosen = np.sort(rng.choice(400, count, replace=False))
        weights.add(chosen, rng.standard_normal(count), rng.random(count) < 0.5)
    train = rng.random(5000) < 0.8

    def scored() -> tuple[np.ndarray, ScorePass]:
        one = ScorePass(fake, weights, train, hard_calls, memory)
        return np.concatenate([sums for _, sums in one.blocks()]), one

    fast, how = scored()
    monkeypatch.setattr(sparse_product, "takes", lambda _: False)
    plain, which = scored()
    np.testing.assert_allclose(fast, plain, rtol=1e-10, atol=1e-10)
    assert (how.never, how.missing) == (which.never, which.missing)
    assert how.missing > 0
    np.testing.assert_allclose(how.expected, which.expected, rtol=1e-12)
