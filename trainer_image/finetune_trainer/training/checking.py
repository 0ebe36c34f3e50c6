"""What a training would refuse, found before anything is drawn for it: pictures take hours, and this takes seconds."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api import TrainingRun
from torch import nn

from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.held_out import held_out
from finetune_trainer.engines.checking import check_engine
from finetune_trainer.engines.optimizers import check_rates
from finetune_trainer.families.base import Family
from finetune_trainer.methods import Files, Method
from finetune_trainer.training.making_samples import check_words, items_of, shapes_of
from finetune_trainer.training.schedule import check_warmup, total_steps


def check_training(
    run: TrainingRun, family: Family, methods: Sequence[Method], dataset: Dataset, files: Files, processes: int
) -> None:
    """Carries out every decision of `train` that can refuse, and changes nothing.

    Args:
        family: the base model, before a technique is installed.
        methods: the techniques of `run`, not installed yet.
        files: what they start from.
        processes: how many train together.

    Raises:
        DataError: a file to start from cannot be used, or no caption has a word that is to be learned.
        ConfigurationError: settings fit neither the model nor each other.
    """
    for method in methods:
        method.check(family, files)
    check_engine(run.engine, run.training, nn.ModuleList(family.parts.values()), family.device)
    check_rates(run.training, [rate for method in methods for rate in method.own_rates])
    held = held_out(run, len(dataset.pictures))
    check_words([word for method in methods for word in method.words], dataset.captions, held)
    shapes_of(dataset.pictures, run.dataset, run.dataset.resolution or family.resolution, crops=1)
    items = items_of(dataset.captions, run.dataset.crops_per_picture, held)
    check_warmup(run.training.scheduler, total_steps(run.training, len(items), processes))
