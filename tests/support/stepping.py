"""An engine with a technique on a tiny model, step by step, without the loop around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from finetune_api import TrainingRun
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.data.samples import Batch, Samples
from finetune_trainer.engines import Engine, EngineState, StepResult
from finetune_trainer.families import Family, Moments, load_family
from finetune_trainer.group.team import ALONE, Team
from finetune_trainer.methods import NoFiles, make_methods, needs_of
from finetune_trainer.training.making_samples import make_samples
from finetune_trainer.training.step_module import StepModule
from torch import Tensor

from support.training import dataset_of


@dataclass(frozen=True)
class Stepping:
    """What is trained, and the engine that was given it."""

    engine: Engine
    samples: Samples
    family: Family
    module: StepModule

    def step(self, number: int, factor: float = 1.0) -> StepResult:
        return self.engine.step(self.samples.step(number), factor)

    def poisoned(self, number: int, bad: float = float("nan")) -> StepResult:
        """The step with one number in its last micro-batch spoilt."""
        *others, last = self.samples.step(number)
        return self.engine.step([*others, spoilt(last, bad)], 1.0)


def stepping(
    run: TrainingRun, engine: Engine, model: Path, pictures: Path, device: str = "cpu", team: Team = ALONE
) -> Stepping:
    """As the loop prepares it on the engine's `device`; the engine's own `prepare` is called here."""
    family = load_family(model, torch.device(device))
    methods = make_methods(run.method, run.training.seed)
    groups = [group for method in methods for group in method.install(family, NoFiles())]
    samples = make_samples(run, family, methods, dataset_of(run, pictures), PictureSet.of([]), None, team)
    module = StepModule(family, needs_of(methods), run.training.loss).train()
    engine.prepare(module, groups, run.training, samples.step(0))
    return Stepping(engine, samples, family, module)


def spoilt(batch: Batch, bad: float = float("nan")) -> Batch:
    mean = batch.moments.mean.clone()
    mean[0, 0, 0, 0] = bad
    return replace(batch, moments=Moments(mean, batch.moments.logvar))


def numbers_of(state: EngineState) -> dict[str, Tensor]:
    """All that a state holds, by name."""
    found = {f"weights/{name}": value for name, value in state.weights.items()}
    found |= {f"optimizer/{name}": value for name, value in state.optimizer.items()}
    if state.average is not None:
        found |= {f"average/{name}": value for name, value in state.average.weights.items()}
        found["average updates"] = torch.tensor(state.average.updates)
    return found
