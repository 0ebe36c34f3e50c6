"""What a fine-tune learned and what it spoiled, in figures, from a classifier's answers. Pure functions.

Only the built-in base model has a classifier that knows its example subject; for other models nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.builtin.vocabulary import RARE_WORDS, SHAPES, SUBJECT


@dataclass(frozen=True)
class Judged:
    """What the classifier says of the pictures of one prompt."""

    prompt: str
    classes: tuple[str, ...]
    """For each picture a shape, `subject` or `none`."""
    features: NDArray[np.float32]
    """[N, D]; compare pictures by their Euclidean distance."""


def share(classes: Sequence[str], wanted: str) -> float:
    """Share of `wanted` among `classes`, 0 … 1. Raises ValueError when there are none."""
    if not classes:
        raise ValueError("no pictures to judge")
    return sum(one == wanted for one in classes) / len(classes)


def fidelity(judged: Sequence[Judged]) -> float | None:
    """Share of pictures for prompts with the rare word that show the subject. Higher is better."""
    return _share_over([j for j in judged if names_subject(j.prompt)], SUBJECT)


def leak(judged: Sequence[Judged]) -> float | None:
    """Share of pictures for prompts *without* the rare word that show the subject all the same. Lower is better."""
    return _share_over([j for j in judged if not names_subject(j.prompt)], SUBJECT)


def class_accuracy(judged: Sequence[Judged]) -> float | None:
    """Share of pictures for prompts that name a shape, and no rare word, that show that shape. Higher is better."""
    named = [(j, shape) for j in judged if not names_subject(j.prompt) and (shape := shape_in(j.prompt))]
    if not named:
        return None
    right = sum(one == shape for j, shape in named for one in j.classes)
    return right / sum(len(j.classes) for j, _ in named)


def drift(before: Sequence[Judged], after: Sequence[Judged]) -> float | None:
    """Mean distance between the pictures of the same prompt and seed, before and after, for prompts without the
    rare word: how far the training moved what it should not have touched. Lower is better."""
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if not names_subject(b.prompt)]
    if not pairs:
        return None
    return float(np.mean(np.concatenate([feature_distances(b.features, a.features) for b, a in pairs])))


def feature_distances(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Euclidean distances between the rows of two arrays [N, D]: float32 [N]."""
    distances: NDArray[np.float32] = np.linalg.norm(first - second, axis=1)
    return distances


def figures(before: Sequence[Judged], after: Sequence[Judged]) -> dict[str, float]:
    """All that can be told from these prompts, for the report and the manifest."""
    found = {
        "fidelityBefore": fidelity(before),
        "fidelityAfter": fidelity(after),
        "leakBefore": leak(before),
        "leakAfter": leak(after),
        "classAccuracyBefore": class_accuracy(before),
        "classAccuracyAfter": class_accuracy(after),
        "drift": drift(before, after),
    }
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def names_subject(prompt: str) -> bool:
    """Whether `prompt` has one of the rare words that stand for a new subject."""
    return any(word in RARE_WORDS for word in prompt.lower().split())


def shape_in(prompt: str) -> str | None:
    """The first shape that `prompt` names."""
    return next((word for word in prompt.lower().split() if word in SHAPES), None)


def _share_over(judged: Sequence[Judged], wanted: str) -> float | None:
    classes = [one for j in judged for one in j.classes]
    return share(classes, wanted) if classes else None
