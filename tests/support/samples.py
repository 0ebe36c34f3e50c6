"""Samples of a run, and folders of pictures that they are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from finetune_api import TrainingRun
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.data.samples import Samples
from finetune_trainer.families import Family
from finetune_trainer.group.team import ALONE, Alone, Team
from finetune_trainer.methods import make_methods
from finetune_trainer.training.making_samples import make_samples
from PIL import Image

from support.training import dataset_of, make_pictures, make_run

BUCKETS = {"minResolution": 64, "maxResolution": 128, "step": 16}
ASPECTS = {"wide": (160, 80), "wider": (150, 70), "tall": (80, 160), "square": (96, 100), "small": (30, 30)}


class Seat(Alone):
    """One of several processes, as far as samples know."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def make_shapes(folder: Path) -> Path:
    """Pictures of several aspects."""
    for number, (name, size) in enumerate(ASPECTS.items()):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


def samples_of(
    run: TrainingRun,
    family: Family,
    folder: Path,
    cache: Path | None = None,
    team: Team = ALONE,
    classes: Path | None = None,
) -> Samples:
    class_set = PictureSet.open(classes) if classes is not None else PictureSet.of([])
    methods = make_methods(run.method, 0)
    return make_samples(run, family, methods, dataset_of(run, folder), class_set, cache, team)


def bucketed(batch: int = 2, accumulation: int = 2, **dataset: object) -> TrainingRun:
    training = {"batchSize": batch, "gradientAccumulationSteps": accumulation}
    return make_run("dreamBooth", training=training, dataset={"resolution": 96, "buckets": BUCKETS, **dataset})


def with_texts(folder: Path, texts: dict[str, str]) -> Path:
    make_pictures(folder, len(texts))
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder
