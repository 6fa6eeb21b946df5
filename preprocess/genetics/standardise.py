"""z-scores with statistics of the training split only."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np


def fit(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column.

    Parameters
    ----------
    values : ndarray of float, shape (training participants, features)
        NaN is missing and excluded from both.

    Returns
    -------
    mean, scale : ndarray of float64, shape (features,)
        The deviation divides by n and is 1 for a constant column. The mean is 0 for a column without values.
    constant : ndarray of bool, shape (features,)
    """
    return fit_blocks(lambda: [values])


def fit_blocks(blocks: Callable[[], Iterable[np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the same as :func:`fit` for blocks of rows that do not fit into memory together.

    Parameters
    ----------
    blocks : callable
        Called twice; returns the same blocks (training participants, features) each time.
    """
    count: np.ndarray | int = 0
    total: np.ndarray | float = 0.0
    for block in blocks():
        present = ~np.isnan(block)
        count = count + present.sum(axis=0)
        total = total + np.where(present, block, 0).sum(axis=0, dtype=np.float64)
    mean = np.asarray(total) / np.maximum(count, 1)
    squares: np.ndarray | float = 0.0
    for block in blocks():
        squares = squares + np.square(np.where(np.isnan(block), 0, block - mean)).sum(axis=0, dtype=np.float64)
    scale = np.sqrt(np.asarray(squares) / np.maximum(count, 1))
    # Rounding gives a constant column a deviation of about its value times 1e-16.
    constant = scale <= 1e-12 * np.maximum(1e-300, np.abs(mean))
    return mean, np.where(constant, 1.0, scale), constant
