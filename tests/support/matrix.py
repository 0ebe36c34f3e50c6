"""One cell of the matrix of techniques, engines and base models: a training of a few steps, and what it changed."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import torch
from finetune_api import TrainingRun
from finetune_trainer.families import Family, load_family
from finetune_trainer.group.seat import Seat
from finetune_trainer.group.team import join
from finetune_trainer.methods import NoFiles, make_methods
from torch import nn

from support.training import train_once
from support.zero import forget_group

METHODS: Mapping[str, tuple[str, dict[str, object]]] = {
    "lora": ("lora", {"rank": 2, "targets": ["attention", "feedForward", "convolution"]}),
    "lora with the text encoder": ("lora", {"rank": 2, "trainTextEncoder": True, "useDora": True}),
    "pivotal tuning": (
        "lora",
        {"prompt": "a <new> dog", "rank": 2, "tokens": [{"placeholder": "<new>", "vectors": 2}]},
    ),
    "dreamBooth": ("dreamBooth", {}),
    "dreamBooth with the text encoder": ("dreamBooth", {"trainTextEncoder": True}),
    "textualInversion": ("textualInversion", {"tokens": [{"placeholder": "<new>", "vectors": 2}]}),
    "hypernetwork": ("hypernetwork", {}),
}
ENGINES: Mapping[str, tuple[int, dict[str, object]]] = {
    "eager": (1, {}),
    "replicated": (2, {}),
    "sharded": (2, {"kind": "Sharded"}),
    "ZeRO-3": (2, {"kind": "DeepSpeed", "zeroStage": 3, "offloadOptimizer": "Cpu", "offloadParameters": "Cpu"}),
}
"""Engine → processes, and spec.engine. Captured and Compiled, which are for GPUs, are in tests of their own."""
CUT = ("sharded", "ZeRO-3")
"""Engines whose processes each have a part of the weights."""


@dataclass(frozen=True)
class Trained:
    """What a process has to tell of its training."""

    losses: tuple[float, ...]
    groups: dict[str, frozenset[str]]
    """The technique's own parameters by group, each by its part and its name there."""
    changed: frozenset[str]
    """Parameters of all parts that are not what they were before the first step."""


def train_cell(run: TrainingRun, seat: Seat | None, model: Path, pictures: Path, folder: Path) -> Trained:
    """Trains as the process of `seat`."""
    torch.set_num_threads(1)
    forget_group()
    team = join(seat, torch.device("cpu"))
    team.meet(lambda: False)
    try:
        family, outcome = train_once(run, model, pictures, folder, team=team)
    finally:
        # the next cell is another group's
        team.close()
    # what a technique starts from is drawn from the seed: installed once more, it is as it was before the first step
    before = load_family(model, torch.device("cpu"))
    groups = [group for method in make_methods(run.method, 0) for group in method.install(before, NoFiles())]
    start, end = _parameters(before), _parameters(family)
    assert start.keys() == end.keys()
    names = {id(value): name for name, value in start.items()}
    return Trained(
        outcome.losses,
        {group.name: frozenset(names[id(value)] for value in group.parameters.values()) for group in groups},
        frozenset(name for name, value in start.items() if not torch.equal(value, end[name])),
    )


def train_cell_together(
    pool: Executor, run: TrainingRun, size: int, model: Path, pictures: Path, folder: Path
) -> list[Trained]:
    """`size` processes of `pool` train as one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    generation = uuid.uuid4().hex
    seats = [
        Seat(rank=rank, size=size, local_rank=rank, generation=generation, store_host="127.0.0.1", store_port=port)
        for rank in range(size)
    ]
    futures = [pool.submit(train_cell, run, seat, model, pictures, folder / str(seat.rank)) for seat in seats]
    return [future.result(timeout=300) for future in futures]


def _parameters(family: Family) -> dict[str, nn.Parameter]:
    return {
        f"{part}.{name}": value for part, module in family.parts.items() for name, value in module.named_parameters()
    }
