"""Between the inputs and the first picture: everything that can be wrong with them is found here, before hours of
drawing and training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from finetune_api import TrainingRun

from finetune_trainer.attempt import Inputs
from finetune_trainer.data.dataset import Dataset, read_dataset
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.device import compute_deterministically, device_of
from finetune_trainer.exports import check_exports
from finetune_trainer.families import Family, load_family
from finetune_trainer.group.seat import Seat
from finetune_trainer.methods import Method, make_methods
from finetune_trainer.training.checking import check_training


@dataclass(frozen=True)
class Prepared:
    """What a process of a run has in memory when it begins; the same in all of a group."""

    dataset: Dataset
    device: torch.device
    family: Family
    """The base model, before a technique is installed."""
    methods: tuple[Method, ...]
    """Not installed yet."""


def prepare(run: TrainingRun, inputs: Inputs, seat: Seat | None) -> Prepared:
    """Reads the pictures and the base model, and finds that the run can be carried out with them.

    Raises:
        DataError, ConfigurationError: it cannot; the message says what to change.
    """
    # the quick things first
    dataset = read_dataset(PictureSet.open(inputs.pictures), run.dataset)
    device = device_of(seat)
    if run.training.deterministic:
        compute_deterministically()
    family = load_family(inputs.model.path, device, run.training.clip_skip)
    check_exports(run, family)
    methods = make_methods(run.method, run.training.seed)
    check_training(run, family, methods, dataset, inputs.files, 1 if seat is None else seat.size)
    return Prepared(dataset, device, family, methods)
