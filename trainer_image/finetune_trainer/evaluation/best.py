"""Which judged step is the best one, and when there is no more to hope for. Pure functions.

The rule: the highest fidelity among the steps whose leak is at most `max_leak`; of equal ones the earlier. Where no
step is under the limit, the one with the greatest fidelity minus leak: the lowest leak alone would choose a step that
has learned nothing yet. A run without a figure for leak has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_trainer.evaluation.intervals import Figure


@dataclass(frozen=True)
class JudgedStep:
    """What was found at one step."""

    step: int
    figures: Mapping[str, Figure]


def best_of(history: Sequence[JudgedStep], max_leak: float) -> JudgedStep | None:
    """The best of `history`, which is in the order of steps; None when it is empty."""
    if not history:
        return None
    within = [one for one in history if _value(one, "leak") <= max_leak]
    # max keeps the first of equal ones
    if within:
        return max(within, key=lambda one: _value(one, "fidelity"))
    return max(history, key=lambda one: _value(one, "fidelity") - _value(one, "leak"))


def gives_up(history: Sequence[JudgedStep], max_leak: float, patience: int | None) -> bool:
    """Whether the last `patience` judgements brought no better step. Never without patience."""
    best = best_of(history, max_leak)
    if patience is None or best is None:
        return False
    return len(history) - 1 - [one.step for one in history].index(best.step) >= patience


def _value(one: JudgedStep, name: str) -> float:
    return one.figures[name].value if name in one.figures else 0.0
