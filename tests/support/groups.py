"""Groups on this machine: processes that train together, and pods that are `finetune run` with a place in a group."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from finetune_api import TrainingRun
from finetune_api.engine import EngineSpec
from finetune_trainer.engines import Engine, make_engine
from finetune_trainer.exports import export_weights
from finetune_trainer.group.seat import Seat
from finetune_trainer.group.team import Team, join
from finetune_trainer.methods import ParameterGroup
from finetune_trainer.telemetry.listener import StepReport
from finetune_trainer.training.duties import Duty

from support.runs import Ended, Pod
from support.toys import Regression, batch_of
from support.training import Memory, make_run, train_once

T = TypeVar("T")

PEER_SECONDS = 4.0
"""FINETUNE_PEER_SECONDS of these pods: the bound is a setting, and its default of 30 s would be most of a test."""


@dataclass(frozen=True)
class Trained:
    """What one process of a group has to tell."""

    losses: tuple[float, ...]
    interrupted: bool
    resumed_from: int | None
    saved: tuple[int, ...]
    weights: dict[str, bytes]
    """The exported files."""
    best_step: int | None


class DiesAt(Memory):
    """Its process is killed when a step is done, as if its machine had failed."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.fatal_step = step

    def step(self, report: StepReport) -> None:
        super().step(report)
        if report.step == self.fatal_step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_in_group(
    run: TrainingRun,
    seat: Seat | None,
    model: Path,
    pictures: Path,
    folder: Path,
    stops_after: int | None = None,
    dies_at: int | None = None,
    duties: Sequence[Duty] = (),
) -> Trained:
    """Trains as the process of `seat`. This process alone is asked to stop after `stops_after` looks, or is killed
    at the step `dies_at`."""
    torch.set_num_threads(1)
    team = join(seat, torch.device("cpu"))
    team.meet(lambda: False)
    looks = iter(range(10**9 if stops_after is None else stops_after))
    listener = DiesAt(dies_at)
    family, outcome = train_once(
        run,
        model,
        pictures,
        folder,
        lambda: next(looks, None) is None,
        listener,
        team=team,
        duties_of=lambda _: duties,
    )
    team.close()
    export = folder / "export" / str(team.rank)
    files = export_weights(run, family, [method.result() for method in outcome.methods], export)
    return Trained(
        outcome.losses,
        outcome.interrupted,
        outcome.resumed_from_step,
        tuple(listener.checkpoints),
        {path.relative_to(export).as_posix(): path.read_bytes() for path in files},
        outcome.best_step,
    )


def train_as_group(
    pool: Executor,
    run: TrainingRun,
    size: int,
    model: Path,
    pictures: Path,
    folder: Path,
    stops_after: dict[int, int] | None = None,
    dies_at: dict[int, int] | None = None,
    duties: Sequence[Duty] = (),
) -> list[Trained]:
    """`size` processes of `pool` train together; `stops_after` and `dies_at` by rank, `duties` for rank 0.

    Raises BrokenProcessPool where one died: the pool is gone then.
    """
    futures = []
    for rank, seat in enumerate(_seats(size)):
        own = folder if rank == 0 else folder / str(rank)
        stops, dies = (stops_after or {}).get(rank), (dies_at or {}).get(rank)
        its_duties = duties if rank == 0 else ()
        futures.append(pool.submit(train_in_group, run, seat, model, pictures, own, stops, dies, its_duties))
    return [future.result(timeout=300) for future in futures]


def optimize_in_group(seat: Seat, names: Sequence[str], steps: int) -> dict[str, tuple[list[float], list[float]]]:
    """For each optimizer what `_optimized` gives in this process."""
    torch.set_num_threads(1)
    team = join(seat, torch.device("cpu"))
    team.meet(lambda: False)
    # no engine may outlive the group
    found = {name: _optimized(name, team, steps) for name in names}
    team.close()
    return found


def _optimized(name: str, team: Team, steps: int) -> tuple[list[float], list[float]]:
    """Losses of `steps` steps of a toy and the sum of its averaged weights, without and with a resumption in the
    middle, for which rank 0 alone gets the state."""
    rate = 1.0 if name == "Prodigy" else 0.01
    spec = make_run(training={"learningRate": rate, "optimizer": {"name": name}, "ema": True}).training

    def prepared() -> Engine:
        module = Regression(dropout=0.1)
        engine = make_engine(EngineSpec(), torch.device("cpu"), team)
        engine.prepare(module, [ParameterGroup("all", dict(module.named_parameters()))], spec, [])
        return engine

    def losses(engine: Engine, first: int, last: int) -> list[float]:
        numbers = [2 * step + team.rank for step in range(first, last)]
        return [float(engine.step([batch_of(0.5, number, seed=number)], 1.0).loss) for number in numbers]

    def average(engine: Engine) -> float:
        with engine.averaged():
            return float(sum(value.double().sum() for value in engine.weights().values()))

    engine, resumed = prepared(), prepared()
    before = losses(engine, 0, steps // 2)
    state = engine.state()
    whole = [*before, *losses(engine, steps // 2, steps), average(engine)]
    resumed.load(state if team.leads else None)
    return whole, [*before, *losses(resumed, steps // 2, steps), average(resumed)]


def in_group(pool: Executor, size: int, task: Callable[..., T], *args: object) -> list[T]:
    """What each process of a group of `pool` makes of `task`, called with its seat and `args`."""
    futures = [pool.submit(task, seat, *args) for seat in _seats(size)]
    return [future.result(timeout=300) for future in futures]


def _seats(size: int) -> list[Seat]:
    """Those of a new group on this machine, by rank."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    generation = uuid.uuid4().hex
    return [
        Seat(rank=rank, size=size, local_rank=rank, generation=generation, store_host="127.0.0.1", store_port=port)
        for rank in range(size)
    ]


@dataclass
class GroupPod:
    """A pod of a group while it runs."""

    pod: Pod
    process: subprocess.Popen[str]
    output: str = ""

    def read_until(self, enough: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first line of the log that is `enough`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            said: dict[str, Any] = json.loads(line)
            if enough(said):
                return said
        raise AssertionError(f"it ended first: {self.output}")

    def ended(self, timeout: float = 120) -> Ended:
        rest, _ = self.process.communicate(timeout=timeout)
        return self.pod.ended(self.process.returncode, self.output + rest)

    def code(self, timeout: float = 120) -> int:
        rest, _ = self.process.communicate(timeout=timeout)
        self.output += rest
        return self.process.returncode

    @property
    def ranks(self) -> list[psutil.Process]:
        """Its training processes, by rank."""
        return psutil.Process(self.process.pid).children()

    def signal_all(self, number: signal.Signals) -> None:
        """As if the machine did it: the supervisor first, or it would notice."""
        for each in (psutil.Process(self.process.pid), *self.ranks):
            each.send_signal(number)

    def bury(self) -> None:
        """Nothing of it goes on, whatever became of it."""
        with suppress(psutil.NoSuchProcess):
            self.signal_all(signal.SIGKILL)
        self.process.wait(30)


def start_group(pods: Sequence[Pod]) -> list[GroupPod]:
    """The pods of one group, node 0 first."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {
        "FINETUNE_GROUP_HOST": "127.0.0.1",
        "FINETUNE_GROUP_PORT": str(port),
        "FINETUNE_PEER_SECONDS": str(PEER_SECONDS),
    }
    return [GroupPod(pod, pod.start(**place, FINETUNE_NODE=str(node))) for node, pod in enumerate(pods)]
