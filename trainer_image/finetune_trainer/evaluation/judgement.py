"""What a fine-tune learned and what it spoiled, in figures. Pure functions of what an encoder saw.

A classifier that knows what it was trained on counts pictures. Any other encoder compares them: with the training
pictures, with each other, and with what the base model draws for the same prompt from the same noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.builtin.vocabulary import COLOURS, NONE, SHAPES, SUBJECT
from finetune_trainer.evaluation.intervals import Figure, mean, mean_over_pairs, share
from finetune_trainer.evaluation.seen import Seen, Verdicts
from finetune_trainer.evaluation.wording import Kind, words_of

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Shown:
    """The pictures of one prompt."""

    prompt: str
    kind: Kind
    seen: Seen
    text: Features | None = None
    """[D] of the prompt without the rare word, where the encoder reads."""


@dataclass(frozen=True)
class Target:
    """What a classifier calls the training pictures."""

    name: str
    """A shape, or `subject`."""
    colour: str | None
    """Of a shape, where the training pictures agree."""

    def hits(self, verdicts: Verdicts) -> list[bool]:
        """Which pictures show it."""
        return [
            name == self.name and self.colour in (None, colour)
            for name, colour in zip(verdicts.classes, verdicts.colours, strict=True)
        ]


def target_of(training: Verdicts | None) -> Target | None:
    """What most of the training pictures are called; None where no name is given to at least half of them, or there
    is no classifier: then features are compared."""
    if training is None:
        return None
    name, count = Counter(training.classes).most_common(1)[0]
    if name == NONE or 2 * count < len(training.classes):
        return None
    colours = Counter(c for n, c in zip(training.classes, training.colours, strict=True) if n == name)
    colour, agreeing = colours.most_common(1)[0]
    agreed = name != SUBJECT and 2 * agreeing >= len(training.classes)
    return Target(name, colour if agreed else None)


def judged(training: Seen, base: Sequence[Shown], now: Sequence[Shown]) -> dict[str, Figure]:
    """All figures that these prompts allow, by the names in `meanings`.

    Args:
        training: the training pictures.
        base: what the base model draws; the same prompts from the same noise as `now`.
        now: what the model draws now.
    """
    target = target_of(training.verdicts)
    found = _likeness(training, now)
    for kind, leak, accuracy, drift in (
        ("class", "leak", "classAccuracy", "drift"),
        ("other", "otherLeak", "otherAccuracy", "otherDrift"),
    ):
        pairs = [(b, n) for b, n in zip(base, now, strict=True) if n.kind == kind]
        if not pairs:
            continue
        after = [n for _, n in pairs]
        if target is not None:
            found[leak] = _share([hit for n in after for hit in target.hits(_verdicts(n))])
            if named := [hit for n in after for hit in _as_named(n)]:
                found[accuracy] = _share(named)
        else:
            rises = [likeness(n.seen.features, training) - likeness(b.seen.features, training) for b, n in pairs]
            found[leak] = mean(np.concatenate(rises))
        moved = [feature_distances(b.seen.features, n.seen.features) for b, n in pairs]
        found[drift] = mean(np.concatenate(moved))
    return found


def _likeness(training: Seen, now: Sequence[Shown]) -> dict[str, Figure]:
    """Figures of the pictures of the subject itself."""
    found: dict[str, Figure] = {}
    subject = [one for one in now if one.kind == "subject"]
    if not subject:
        return found
    target = target_of(training.verdicts)
    if target is not None:
        on_new_ground = on_absent_backgrounds(subject, training.verdicts)
        found["fidelity"] = _share([hit for one in on_new_ground for hit in target.hits(_verdicts(one))])
        if named := [hit for one in subject for hit in _on_named_background(one)]:
            found["promptFidelity"] = _share(named)
    else:
        found["fidelity"] = mean(np.concatenate([likeness(one.seen.features, training) for one in subject]))
        read = [one.seen.features @ one.text for one in subject if one.text is not None]
        if read:
            found["promptFidelity"] = mean(np.concatenate(read))
    if all(len(one.seen.features) > 1 for one in subject):
        found["diversity"] = mean_over_pairs([distances(one.seen.features, one.seen.features) for one in subject])
    nearest = np.concatenate([distances(one.seen.features, training.features).min(1) for one in subject])
    found["nearestDistance"] = mean(nearest)
    radius = copy_radius(training.features)
    if radius is not None:
        found["nearCopies"] = _share((nearest < radius).tolist())
    return found


def likeness(features: Features, training: Seen) -> Features:
    """[N]: the mean cosine of each picture with all training pictures; DINO and CLIP-I of the DreamBooth paper."""
    cosines: Features = (unit(features) @ unit(training.features).T).mean(1)
    return cosines


def on_absent_backgrounds(subject: Sequence[Shown], training: Verdicts | None) -> Sequence[Shown]:
    """The prompts whose background no training picture has, where there are any, else all: a model that puts the
    training pictures together again has not learned what the subject is."""
    known = set(training.backgrounds) if training is not None else set()
    absent = [one for one in subject if (colour := background_in(one.prompt)) is not None and colour not in known]
    return absent or subject


def copy_radius(training: Features) -> float | None:
    """Half the smallest distance between two different training pictures. What is nearer than that to one of them is
    nearer to it than to any other, so it is that picture rather than one more of the same thing. None with fewer than
    two different pictures."""
    between = distances(training, training)
    different = between[between > 1e-4]
    return float(different.min()) / 2 if different.size else None


def distances(first: Features, second: Features) -> Features:
    """Euclidean distances [N, M] between the rows of [N, D] and [M, D]."""
    # differences row by row: by way of products, a picture would not be at distance 0 from itself
    return np.stack([np.linalg.norm(second - row, axis=1) for row in first])


def feature_distances(first: Features, second: Features) -> Features:
    """Euclidean distances [N] between rows of the same place."""
    apart: Features = np.linalg.norm(first - second, axis=1)
    return apart


def unit(features: Features) -> Features:
    """Rows of length 1."""
    rows: Features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return rows


def shape_in(prompt: str) -> str | None:
    """The first shape that `prompt` names."""
    return next((word for word in words_of(prompt) if word in SHAPES), None)


def background_in(prompt: str) -> str | None:
    """The colour before the word "background", as in tiny-shapes' captions."""
    words = words_of(prompt)
    pairs = pairwise(words)
    return next((colour for colour, word in pairs if word == "background" and colour in COLOURS), None)


def colour_in(prompt: str) -> str | None:
    """The colour before the first shape."""
    words = words_of(prompt)
    pairs = pairwise(words)
    return next((colour for colour, word in pairs if word in SHAPES and colour in COLOURS), None)


def _as_named(one: Shown) -> list[bool]:
    """For each picture whether shape, colour and background are as the prompt names them; [] where it names none."""
    named = (shape_in(one.prompt), colour_in(one.prompt), background_in(one.prompt))
    verdicts = _verdicts(one)
    if not any(named):
        return []
    rows = zip(verdicts.classes, verdicts.colours, verdicts.backgrounds, strict=True)
    return [all(wish in (None, got) for wish, got in zip(named, row, strict=True)) for row in rows]


def _on_named_background(one: Shown) -> list[bool]:
    """For each picture of the subject whether its background is the one that is named; [] where none is. The shape
    that such a prompt names is the subject's class, which the subject takes the place of."""
    wish = background_in(one.prompt)
    return [] if wish is None else [got == wish for got in _verdicts(one).backgrounds]


def _verdicts(one: Shown) -> Verdicts:
    assert one.seen.verdicts is not None, "a target comes from a classifier"
    return one.seen.verdicts


def _share(hits: Sequence[bool]) -> Figure:
    return share(sum(hits), len(hits))
