"""Engines whose processes each hold a part of the weights, beside the ones that hold all of them: in one group, each
engine takes the same steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from finetune_api import TrainingRun
from finetune_api.engine import EngineSpec
from finetune_trainer.engines import Engine, EngineState, make_engine
from finetune_trainer.group.seat import Seat
from finetune_trainer.group.team import Team, join
from torch import Tensor

from support.stepping import Stepping, numbers_of, stepping

CPU = torch.device("cpu")
LOSS_TOLERANCE = 1e-5
"""Relative."""
UPDATE_TOLERANCE = 1e-3
"""Length of the difference of the two results, relative to how far the training moved the weights."""


def whole_numbers(one: Stepping) -> dict[str, int]:
    """Of the whole module, while it has all of its parameters."""
    return {"whole": sum(value.numel() for value in one.module.parameters())}


@dataclass(frozen=True)
class Case:
    """A training of `before` + `after` steps."""

    name: str
    run: TrainingRun
    engine: EngineSpec
    held: Callable[[Stepping], dict[str, int]] = whole_numbers
    before: int = 2
    after: int = 2
    changes: bool = False
    """Whether the two engines also go on from each other's checkpoint."""


@dataclass(frozen=True)
class Found:
    """What one process says of a case."""

    losses: list[float]
    expected_losses: list[float]
    """Of the copies in each process, whose gradients are summed."""
    update: float
    """Length of the difference of the two results, relative to how far the copies moved."""
    average: float
    """The same of the averaged weights; 0 without."""
    resumed: bool
    """Whether losses and state of a training that went on from the checkpoint in the middle are the same to the bit."""
    elsewhere: list[float]
    """Losses of the copies, going on from that checkpoint."""
    here: list[float]
    """Losses of this engine, going on from the copies' checkpoint."""
    drawn: float
    """Largest difference between a picture's prediction with the averages in place and that of plain modules."""
    unchanged: bool
    """Whether a look at the averages left the training as it was."""
    skips: bool
    """Whether a step that is not finite in rank 0 alone changed nothing anywhere."""
    settled: bool
    """Whether the module is plain in the end, and has the last weights."""
    held: dict[str, int]
    """What this process has in its memory between two steps: numbers, by where they are."""


def try_in_group(seat: Seat | None, case: Case, model: Path, pictures: Path) -> Found:
    torch.set_num_threads(1)
    team = join(seat, CPU)
    team.meet(lambda: False)
    found = _tried(case, team, model, pictures)
    team.close()
    return found


def check_training(each: Sequence[Found], averages: bool = True) -> None:
    """It is the training of the copies, as far as rounding lets it."""
    assert len({tuple(one.losses) for one in each}) == 1
    for one in each:
        np.testing.assert_allclose(one.losses, one.expected_losses, rtol=LOSS_TOLERANCE)
    first = each[0]
    assert 0 < first.update <= UPDATE_TOLERANCE
    assert (first.average > 0) == averages
    assert first.average <= UPDATE_TOLERANCE


def check_changes(each: Sequence[Found]) -> None:
    """The engines go on from each other's checkpoints."""
    for one in each:
        after = len(one.here)
        np.testing.assert_allclose(one.elsewhere, one.losses[-after:], rtol=LOSS_TOLERANCE)
        np.testing.assert_allclose(one.here, one.expected_losses[-after:], rtol=LOSS_TOLERANCE)


def check_changes_nothing(each: Sequence[Found]) -> None:
    """Rank 0 draws alone with the averages in place while the others wait; a step is not finite. Nothing of the
    training changes by it, and in the end all have plain modules."""
    for one in each:
        assert one.drawn <= 1e-4
        assert one.unchanged
        assert one.skips
        assert one.settled


def _tried(case: Case, team: Team, model: Path, pictures: Path) -> Found:
    def trained(engine: Engine) -> Stepping:
        return stepping(case.run, engine, model, pictures, team=team)

    def losses(one: Stepping, first: int, last: int) -> list[float]:
        return [float(one.step(number).loss) for number in range(first, last)]

    numbers = count()

    def parted() -> Engine:
        path = case.engine.nvme_path
        # two engines never share a folder
        changes = {} if path is None else {"nvme_path": f"{path}/{next(numbers)}"}
        return make_engine(case.engine.model_copy(update=changes), CPU, team)

    def copied() -> Engine:
        return make_engine(EngineSpec(), CPU, team)

    middle, end = case.before, case.before + case.after
    reference, tried = trained(copied()), trained(parted())
    start = reference.engine.weights()
    expected, got = losses(reference, 0, middle), losses(tried, 0, middle)
    copies_state, state = reference.engine.state(), tried.engine.state()
    with tried.engine.averaged():
        # rank 0 draws alone
        looked = _prediction(tried) if team.leads else None
    with reference.engine.averaged():
        drawn = 0.0 if looked is None else (_prediction(reference) - looked).abs().max().item()
    unchanged = _same(tried.engine.state(), state)
    held = case.held(tried) | whole_numbers(reference)
    poisoned = tried.poisoned(middle) if team.leads else tried.step(middle)
    skips = bool(poisoned.skipped) and _same(tried.engine.state(), state)
    expected += losses(reference, middle, end)
    got += losses(tried, middle, end)
    last, copies_last = tried.engine.state(), reference.engine.state()

    resumed = trained(parted())
    resumed.engine.load(state if team.leads else None)
    same = losses(resumed, middle, end) == got[middle:]
    same &= _same(resumed.engine.state(), last)
    there = back = expected[middle:]
    if case.changes:
        elsewhere, here = trained(copied()), trained(parted())
        elsewhere.engine.load(state if team.leads else None)
        here.engine.load(copies_state if team.leads else None)
        there, back = losses(elsewhere, middle, end), losses(here, middle, end)

    update = average = 0.0
    if team.leads:
        update = _distance(last.weights, copies_last.weights, start)
        if last.average is not None:
            average = _distance(last.average.weights, copies_last.average.weights, start)
    kept = last.weights if last.average is None else last.average.weights
    tried.engine.settle(None)
    settled = not team.leads or all(torch.equal(tried.engine.weights()[name], kept[name]) for name in kept)
    settled &= all(type(one).__name__ == "Parameter" and one.numel() > 0 for one in tried.module.parameters())
    _prediction(tried)
    return Found(got, expected, update, average, same, there, back, drawn, unchanged, skips, settled, held)


def _prediction(one: Stepping) -> Tensor:
    """Losses of the samples of a step."""
    with torch.no_grad():
        losses: Tensor = one.module(one.samples.step(0)[0])[1]
        return losses


def _same(one: EngineState, other: EngineState) -> bool:
    ours, theirs = numbers_of(one), numbers_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _distance(one: dict[str, Tensor], other: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    def flat(weights: dict[str, Tensor]) -> Tensor:
        return torch.cat([(weights[name].double() - start[name].double()).flatten() for name in sorted(start)])

    return float((flat(one) - flat(other)).norm() / flat(other).norm())
