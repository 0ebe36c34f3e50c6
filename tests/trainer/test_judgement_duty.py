"""The duty by itself: what it leaves out, what it says again, and what a checkpoint takes along."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from finetune_api.outputs import JudgementSpec
from finetune_trainer.errors import Interrupted
from finetune_trainer.evaluation.duty import JudgementDuty
from finetune_trainer.evaluation.intervals import Figure
from finetune_trainer.evaluation.judge import Look
from finetune_trainer.evaluation.snapshots import MOST, Snapshots
from finetune_trainer.training.duties import Said
from PIL import Image
from support.training import Memory

RED = Image.new("RGB", (300, 200), (200, 0, 0))
BASE = Look((), ())


@dataclass
class Told:
    """Stands for a Judge: fidelities in the order of its calls."""

    fidelities: list[float]
    looked: int = 0

    def figures(self, base: Look, now: Look) -> Mapping[str, Figure]:
        self.looked += 1
        value = self.fidelities[self.looked - 1]
        return {"fidelity": Figure(value, value, value, 64)}


@dataclass
class Training:
    """A duty in a training whose steps take a second and whose judgements take `seconds`."""

    spec: JudgementSpec
    judge: Told
    seconds: float = 3.0
    now: float = 0.0
    interrupts: list[int] = field(default_factory=list)
    listener: Memory = field(default_factory=Memory)

    def duty(self) -> JudgementDuty:
        return JudgementDuty(self.spec, self.judge, BASE, self.look, self.listener, lambda: self.now)

    def look(self) -> Look:
        self.now += self.seconds
        if self.judge.looked in self.interrupts:
            self.interrupts.remove(self.judge.looked)
            raise Interrupted("stopped")
        return Look((), ((RED, RED, RED),))

    def run(self, duty: Callable[[int], Said], first: int, last: int) -> dict[int, Said]:
        said = {}
        for step in range(first, last + 1):
            self.now += 1.0
            if step % 10 == 0:
                said[step] = duty(step)
        return said


def spec(**fields: object) -> JudgementSpec:
    return JudgementSpec.model_validate({"everySteps": 10, **fields})


def test_at_most_a_tenth_of_the_time_goes_into_judging_where_nothing_depends_on_it() -> None:
    training = Training(spec(keepBest=False), Told([0.5] * 20))
    duty = training.duty()
    training.run(duty, 1, 150)
    steps = [one.step for one in duty.history]
    # the first takes 3 s, which 30 s of training must pay for, and so on
    assert steps == [10, 60, 90, 120, 150]
    assert duty.budget.share == pytest.approx(0.1)
    left_out = [line for line in training.listener.messages if "is left out" in line]
    assert len(left_out) == 15 - len(steps)
    assert "step 20 is left out: so far judging took 15% of the time" in left_out[0]


@pytest.mark.parametrize("fields", [{}, {"keepBest": False, "patience": 50}])
def test_none_is_left_out_where_the_weights_depend_on_it(fields: dict[str, object]) -> None:
    training = Training(spec(**fields), Told([0.5] * 5), seconds=1000.0)
    duty = training.duty()
    training.run(duty, 1, 50)
    assert [one.step for one in duty.history] == [10, 20, 30, 40, 50]
    assert training.listener.messages == []


def test_it_says_which_weights_are_the_best_so_far() -> None:
    training = Training(spec(), Told([0.5, 0.4, 0.9, 0.9]))
    assert [said.better for said in training.run(training.duty(), 1, 40).values()] == [True, False, True, False]
    kept_last = Training(spec(keepBest=False, patience=9), Told([0.5, 0.4, 0.9, 0.9]))
    assert not any(said.better for said in kept_last.run(kept_last.duty(), 1, 40).values())


def test_only_the_latest_and_the_best_pictures_are_kept_large() -> None:
    training = Training(spec(), Told([0.5, 0.9, 0.4, 0.3]))
    duty = training.duty()
    training.run(duty, 1, 40)
    assert sorted(duty.looks) == [20, 40]


def test_a_checkpoint_takes_everything_along() -> None:
    training = Training(spec(patience=2), Told([0.5, 0.9, 0.4, 0.3]))
    first = training.duty()
    training.run(first, 1, 20)
    state = json.loads(json.dumps(first.state()))
    second = training.duty()
    second.load(state)
    assert second.history == first.history
    assert training.listener.judgements[-1].best_step == 20, "told again, for whoever has forgotten"
    assert (second.budget.spent, second.budget.trained) == (first.budget.spent, first.budget.trained)
    assert second(20) == Said(better=True), "what was judged is not drawn again, and said as it was"
    assert training.judge.looked == 2
    assert training.run(second, 21, 40) == {30: Said(), 40: Said(stop=True)}
    assert [step for step, _ in second.snapshots.rows()] == [10, 20, 30, 40]


def test_an_interrupted_judgement_is_none() -> None:
    training = Training(spec(), Told([0.5, 0.9]), interrupts=[1])
    duty = training.duty()
    training.run(duty, 1, 10)
    with pytest.raises(Interrupted):
        duty(20)
    assert [one.step for one in duty.history] == [10]
    assert duty(20).better


def test_snapshots_are_few_small_and_spread_over_the_training() -> None:
    snapshots = Snapshots()
    noise = Image.effect_noise((1024, 1024), 90).convert("RGB")
    for step in range(1, 101):
        snapshots.add(step, [[noise] * 5] * 2)
    steps = [step for step, _ in snapshots.rows()]
    assert (len(steps), steps[0], steps[-1]) == (MOST, 1, 100)
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 32
    rows = snapshots.rows()[0][1]
    assert [len(row) for row in rows] == [2, 2]
    assert rows[0][0].size == (128, 128)
    assert len(json.dumps(snapshots.state())) < MOST * 4 * 16_000
