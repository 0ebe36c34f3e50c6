"""What each process of a group makes of a step that one of them cannot compute."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from finetune_api.engine import EngineSpec
from finetune_trainer.engines import make_engine
from finetune_trainer.group.seat import Seat
from finetune_trainer.group.team import join
from finetune_trainer.methods import ParameterGroup

from support.toys import Regression, batch_of
from support.training import make_run

POISONED = 2
"""The step whose samples are no numbers in process 1."""


@dataclass(frozen=True)
class Seen:
    """By one process, of five steps of a toy."""

    skipped: list[bool]
    changed: list[bool]
    """Whether any of its weights was another after the step."""
    losses: list[float]
    resumed: list[float]
    """Losses of the last two steps by another engine, which got the state before them, rank 0's alone."""
    scales: list[float | None]
    """Factor of the loss after each step, which rank 0 tells; None without one."""


def step_in_group(seat: Seat, precision: str) -> Seen:
    """As the process of `seat`."""
    torch.set_num_threads(1)
    team = join(seat, torch.device("cpu"))
    team.meet(lambda: False)
    spec = make_run(training={"learningRate": 0.01, "precision": precision, "ema": True}).training
    modules = Regression(), Regression()
    engines = [make_engine(EngineSpec(), torch.device("cpu"), team) for _ in modules]
    for engine, module in zip(engines, modules, strict=True):
        engine.prepare(module, [ParameterGroup("all", dict(module.named_parameters()))], spec, [])
    seen = Seen([], [], [], [], [])
    states = []
    for step in range(5):
        before = [value.detach().clone() for value in modules[0].parameters()]
        weight = math.nan if (step, team.rank) == (POISONED, 1) else 0.5
        result = engines[0].step([batch_of(weight, 2 * step + team.rank)], 1.0)
        states.append(engines[0].state())
        seen.skipped.append(bool(result.skipped))
        seen.losses.append(float(result.loss))
        seen.changed.append(not all(map(torch.equal, before, modules[0].parameters())))
        scale = states[-1].loss_scale
        seen.scales.append(scale.value if scale is not None else None)
    engines[1].load(states[POISONED] if team.leads else None)
    for step in (3, 4):
        seen.resumed.append(float(engines[1].step([batch_of(0.5, 2 * step + team.rank)], 1.0).loss))
    del engine, engines  # none may outlive the group
    team.close()
    return seen
