"""Figures over training seeds: their mean and its 95 % interval. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.evaluation.intervals import Z95

# 97.5 % points of Student's t for 1 … 30 degrees of freedom, as every table has them
T975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """A figure over training seeds."""

    mean: float
    half: float | None
    """Half the width of the 95 % interval of the mean; None for one seed, which says nothing about others."""
    n: int
    """Seeds."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and Student's t interval, mean ± t(n - 1) · s / √n: it assumes that seeds scatter roughly normally, and is
    wide where there are few. Raises ValueError when there are none."""
    n = len(values)
    if n < 1:
        raise ValueError("no seeds")
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Spread(mean, t975(n - 1) * deviation / math.sqrt(n), n)


def t975(freedom: int) -> float:
    """97.5 % point of Student's t; beyond the table by its expansion about the normal distribution (Abramowitz and
    Stegun 26.7.5), which is right to four places there."""
    if freedom <= len(T975):
        return T975[freedom - 1]
    z = Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
