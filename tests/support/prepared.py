"""What a training's engine gets, without the loop: a module with a technique installed, and batches for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from finetune_api import TrainingRun
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.data.samples import Samples
from finetune_trainer.families import Family, load_family
from finetune_trainer.group.team import ALONE
from finetune_trainer.methods import NoFiles, make_methods, needs_of
from finetune_trainer.methods.base import ParameterGroup
from finetune_trainer.training.loop import compute_twice
from finetune_trainer.training.making_samples import make_samples
from finetune_trainer.training.step_module import StepModule

from support.training import dataset_of


@dataclass(frozen=True)
class Prepared:
    family: Family
    module: StepModule
    groups: Sequence[ParameterGroup]
    samples: Samples


def prepared(run: TrainingRun, model: Path, pictures: Path, device: str = "cpu") -> Prepared:
    """As training.loop.train prepares it."""
    family = load_family(model, torch.device(device))
    methods = make_methods(run.method, run.training.seed)
    groups = [group for method in methods for group in method.install(family, NoFiles())]
    none = PictureSet.of([], "class pictures")
    samples = make_samples(run, family, methods, dataset_of(run, pictures), none, None, ALONE)
    module = StepModule(family, needs_of(methods), run.training.loss).train()
    if run.training.gradient_checkpointing:
        for part in module.parts.values():
            compute_twice(part)
    return Prepared(family, module, groups, samples)
