"""Which pictures are kept out of the training, to see how the loss is on pictures that were never shown."""

from __future__ import annotations

from finetune_api import TrainingRun

from finetune_trainer.data.draw import Purpose, choose

FEWEST = 20
"""Of fewer pictures none can be spared."""
SHARE = 10
"""One in so many."""


def held_out(run: TrainingRun, pictures: int) -> frozenset[int]:
    """Numbers of the pictures (0 … pictures - 1) that are not trained on: a tenth, chosen by the training's seed, of
    at least 20 pictures, where the run is to be judged; else none."""
    if run.judgement is None or pictures < FEWEST:
        return frozenset()
    chosen = [choose(run.training.seed, Purpose.VALIDATION, ordinal, pictures) for ordinal in range(pictures // SHARE)]
    return frozenset(chosen)
