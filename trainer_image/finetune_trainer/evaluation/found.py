"""What came of the pictures of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from finetune_trainer.evaluation.best import JudgedStep
from finetune_trainer.evaluation.intervals import Figure
from finetune_trainer.publish.manifest import ManifestFigure, ManifestJudgement


@dataclass(frozen=True)
class Judgement:
    """What was found about the weights that a run ends with."""

    encoder: str
    """Who judged."""
    by_classifier: bool
    """Whether it has a name for what was trained; else features are compared."""
    images_per_prompt: int
    step: int
    """The step whose weights were judged."""
    before: dict[str, Figure]
    """Of the base model."""
    after: dict[str, Figure]
    history: tuple[JudgedStep, ...]
    """Every judged step."""
    best_step: int | None
    """By the rule; none where only the end was judged."""
    time_share: float
    """Time of judging on the way as a share of the time of training."""

    def for_manifest(self) -> ManifestJudgement:
        """What is published. A figure that is no finite number is left out, as JSON has no word for it."""
        base, figures = (
            {
                name: ManifestFigure(value=figure.value, low=figure.low, high=figure.high, n=figure.n)
                for name, figure in found.items()
                if math.isfinite(figure.value)
            }
            for found in (self.before, self.after)
        )
        return ManifestJudgement(
            encoder=self.encoder,
            images_per_prompt=self.images_per_prompt,
            step=self.step,
            best_step=self.best_step,
            base=base,
            figures=figures,
        )


@dataclass(frozen=True)
class Pictures:
    """Everything that was drawn for the report, and what was found."""

    prompts: tuple[str, ...]
    before: tuple[tuple[Image.Image, ...], ...]
    """For each prompt its pictures; picture i has seed i, before and after."""
    after: tuple[tuple[Image.Image, ...], ...]
    on_the_way: tuple[tuple[int, list[list[Image.Image]]], ...]
    """(step, for each prompt its first pictures); step 0 is the base model. Empty where none were drawn on the way."""
    judgement: Judgement | None
