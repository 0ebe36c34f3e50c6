"""A figure, how many pictures it comes from, and its 95 % interval. Pure functions of numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
"""Quantile of the normal distribution at 97.5 %."""
RESAMPLES = 1000
SEED = 0
"""Of the bootstrap: the same pictures always have the same interval."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A measured value."""

    value: float
    low: float
    """Lower end of the 95 % interval over pictures. Other training seeds may well differ by more."""
    high: float
    n: int
    """Pictures it comes from."""


def share(hits: int, n: int) -> Figure:
    """`hits` of `n` with Wilson's score interval, which stays within 0 … 1 and has a width at 0 and at n too
    (Wilson 1927, doi:10.1080/01621459.1927.10502953). Raises ValueError when n is 0."""
    if n < 1:
        raise ValueError("no pictures to judge")
    rate, square = hits / n, Z95 * Z95
    centre = (rate + square / (2 * n)) / (1 + square / n)
    half = Z95 * math.sqrt(rate * (1 - rate) / n + square / (4 * n * n)) / (1 + square / n)
    # rounding must not put the value outside of its own interval
    return Figure(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)), n)


def mean(values: Sequence[float] | NDArray[np.floating]) -> Figure:
    """The mean of [N] values with a percentile bootstrap. Raises ValueError when there are none."""
    numbers = np.asarray(values, np.float64)
    if numbers.size < 1:
        raise ValueError("no pictures to judge")
    counts = _resampled(np.random.default_rng(SEED), numbers.size)
    return _figure(float(numbers.mean()), counts @ numbers / numbers.size, numbers.size)


def mean_over_pairs(groups: Sequence[NDArray[np.floating]]) -> Figure:
    """The mean over all pairs of different pictures within each group, each group counting alike.

    Args:
        groups: symmetric matrices of distances [N, N] with zeros on the diagonal, N at least 2.

    Pictures are resampled, not pairs, for pairs that share a picture are not independent; a picture that is drawn
    twice makes no pair with itself, or the mean would be too low. Raises ValueError when there is no pair.
    """
    if not groups or any(len(group) < 2 for group in groups):
        raise ValueError("a mean over pairs takes two pictures of each prompt")
    generator = np.random.default_rng(SEED)
    values, resampled = [], []
    for group in groups:
        distances = np.asarray(group, np.float64)
        whole = np.ones((1, len(distances)))
        values.append(float(_pair_means(distances, whole)[0]))
        resampled.append(_pair_means(distances, _resampled(generator, len(distances))))
    return _figure(float(np.mean(values)), np.mean(resampled, axis=0), sum(len(group) for group in groups))


def _pair_means(distances: Array, counts: Array) -> Array:
    """For each row of counts [R, N] the mean distance over pairs of different pictures."""
    totals = np.einsum("ri,ij,rj->r", counts, distances, counts)
    pairs = counts.sum(1) ** 2 - (counts**2).sum(1)
    # one picture drawn N times makes no pair; it says as little as any other value, so it takes the whole's
    whole = distances.sum() / (len(distances) * (len(distances) - 1))
    return np.where(pairs > 0, totals / np.maximum(pairs, 1), whole)


def _resampled(generator: np.random.Generator, n: int) -> Array:
    """[RESAMPLES, n]: how often each of n pictures is in each resample."""
    return generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def _figure(value: float, resampled: Array, n: int) -> Figure:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Figure(value, min(value, float(low)), max(value, float(high)), n)
