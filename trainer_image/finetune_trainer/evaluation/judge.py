"""Pictures before the built-in classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from finetune_trainer.builtin.classifier import load_classifier
from finetune_trainer.builtin.vocabulary import SUBJECT
from finetune_trainer.evaluation.judgement import Judged, figures, share


def judge_pictures(
    classifier_folder: Path, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]
) -> list[Judged]:
    """What the classifier in `classifier_folder` says of the pictures of each prompt."""
    classifier = load_classifier(classifier_folder)
    judged = []
    for prompt, row in zip(prompts, pictures, strict=True):
        verdict = classifier.classify(np.stack([np.asarray(picture.convert("RGB")) for picture in row]))
        judged.append(Judged(prompt, tuple(verdict.class_names()), verdict.features.numpy()))
    return judged


def judge_run(
    model: Path,
    training_pictures: Sequence[Image.Image],
    prompts: Sequence[str],
    before: Sequence[Sequence[Image.Image]],
    after: Sequence[Sequence[Image.Image]],
) -> dict[str, float] | None:
    """Figures of a run, or None where they would mean nothing: the classifier of the built-in base model `model`
    does not know the subject that was trained."""
    folder = model / "classifier"
    (known,) = judge_pictures(folder, ["training pictures"], [[_small(picture) for picture in training_pictures]])
    if share(known.classes, SUBJECT) < 0.5:
        return None
    return figures(judge_pictures(folder, prompts, before), judge_pictures(folder, prompts, after))


def _small(picture: Image.Image) -> Image.Image:
    """A common size, so that pictures of any aspect stand in one array."""
    return picture.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
