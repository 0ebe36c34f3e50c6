"""The course of a training as points of SVG paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

POINTS = 300
WINDOW = 20


@dataclass(frozen=True)
class Curve:
    """Points for `<polyline>`, in a box of width × height with the origin at the top left."""

    raw: str
    """Every step, or every n-th of a long training."""
    smooth: str
    """Mean over the last 20 steps: the loss of a single step says little, for its noise levels are drawn."""
    low: float
    high: float
    """Values at the lower and the upper edge."""
    steps: int


@dataclass(frozen=True)
class Chart:
    """Several lines over the same steps and the same scale, in a box as that of Curve."""

    lines: Mapping[str, str]
    """Name → points."""
    ends: Mapping[str, tuple[float, float, float]]
    """Name → where its last point is, and its value."""
    low: float
    high: float
    steps: int


def loss_curve(losses: Sequence[float], width: float, height: float) -> Curve | None:
    """The curve of `losses`, one for each step from the first on; None when there are fewer than two."""
    # a step whose loss is not finite changed nothing: the line goes on as it was
    first = next(filter(math.isfinite, losses), 0.0)
    finite = list(accumulate(losses, lambda last, loss: loss if math.isfinite(loss) else last, initial=first))[1:]
    if len(finite) < 2:
        return None
    means = moving_mean(finite, WINDOW)
    stride = max(1, len(finite) // POINTS)
    # the last step is always shown
    shown = sorted({*range(0, len(finite), stride), len(finite) - 1})
    low, high = min(finite[i] for i in shown), max(finite[i] for i in shown)
    span = (high - low) or 1.0

    def points(values: Sequence[float]) -> str:
        return " ".join(
            f"{i / (len(finite) - 1) * width:.1f},{height - (values[i] - low) / span * height:.1f}" for i in shown
        )

    return Curve(points(finite), points(means), low, high, len(finite))


def chart(series: Mapping[str, Sequence[tuple[int, float]]], steps: int, width: float, height: float) -> Chart | None:
    """Lines of (step, value); names with fewer than two points are left out, and None is what is left of nothing.

    The scale begins at 0, or below where a value is below, and ends at 1 or above.
    """
    drawn = {name: points for name, points in series.items() if len(points) > 1}
    if not drawn:
        return None
    values = [value for points in drawn.values() for _, value in points]
    low, high = min(0.0, *values), max(1.0, *values)

    def place(step: int, value: float) -> tuple[float, float]:
        return step / max(steps, 1) * width, height - (value - low) / (high - low) * height

    lines, ends = {}, {}
    for name, points in drawn.items():
        lines[name] = " ".join("{:.1f},{:.1f}".format(*place(step, value)) for step, value in points)
        ends[name] = (*place(*points[-1]), points[-1][1])
    return Chart(lines, ends, low, high, steps)


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and those before it, `window` in all; fewer at the start."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value
        if i >= window:
            total -= values[i - window]
        means.append(total / min(i + 1, window))
    return means
