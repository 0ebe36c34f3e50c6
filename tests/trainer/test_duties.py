"""What is done every so many steps: when, with which weights, and what it may decide."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_api import TrainingRun
from finetune_trainer.exports import export_weights
from finetune_trainer.families import Family
from finetune_trainer.telemetry.listener import StepReport
from support.duties import Scripted
from support.power_cut import KillsAt, PowerCut
from support.training import Memory, Trained, make_run, train_once


def run_of(**training: object) -> TrainingRun:
    return make_run(training={"steps": 7, "learningRate": 1e-2, **training}, checkpoints={"everySteps": 3})


def exported(run: TrainingRun, family: Family, outcome: Trained, folder: Path) -> dict[str, bytes]:
    files = export_weights(run, family, [method.result() for method in outcome.methods], folder / "export")
    return {path.name: path.read_bytes() for path in files}


def test_duties_see_the_averages_and_modules_that_do_not_train(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    seen: dict[int, torch.Tensor] = {}
    run = run_of(ema=True)

    def weights(family: Family) -> torch.Tensor:
        named = sorted(family.parts["unet"].named_parameters())
        return torch.cat([value.detach().flatten() for name, value in named if "lora_B" in name])

    def duty_of(family: Family) -> list[Scripted]:
        def look(step: int) -> None:
            assert not any(module.training for module in family.parts["unet"].modules())
            seen[step] = weights(family)

        return [Scripted(look=look), Scripted(every=5)]

    family, outcome = train_once(run, tiny_sd, pictures, tmp_path / "a", duties_of=duty_of)
    assert list(seen) == [2, 4, 6, 7], "and after the last step"
    assert torch.equal(weights(family), seen[7]), "which are what it ends with"
    _, undisturbed = train_once(run, tiny_sd, pictures, tmp_path / "b")
    assert outcome.losses == undisturbed.losses, "the training goes on with its own weights"
    assert outcome.best_step is None


def test_a_training_ends_with_the_best_weights_whatever_happens_in_between(
    tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    run = run_of()
    short, outcome = train_once(run_of(steps=4), tiny_sd, pictures, tmp_path / "short")
    expected = exported(run, short, outcome, tmp_path / "short")

    duty = Scripted(better=(2, 4))
    family, outcome = train_once(run, tiny_sd, pictures, tmp_path / "whole", duties_of=lambda _: [duty])
    assert (outcome.step, outcome.best_step) == (7, 4)
    assert exported(run, family, outcome, tmp_path / "whole") == expected

    with pytest.raises(PowerCut):
        train_once(run, tiny_sd, pictures, tmp_path, listener=KillsAt(7), duties_of=lambda _: [Scripted(better=(2, 4))])
    late = Scripted()
    family, again = train_once(run, tiny_sd, pictures, tmp_path, duties_of=lambda _: [late])
    assert (again.resumed_from_step, again.best_step, late.asked) == (6, 4, [7])
    assert late.finished == [2, 4, 6, 7]
    assert exported(run, family, again, tmp_path) == expected
    assert again.losses == outcome.losses


def test_with_averages_the_best_are_averages(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    run = run_of(ema=True)
    short, outcome = train_once(run_of(ema=True, steps=4), tiny_sd, pictures, tmp_path / "short")
    family, whole = train_once(run, tiny_sd, pictures, tmp_path, duties_of=lambda _: [Scripted(better=(4,))])
    assert exported(run, family, whole, tmp_path) == exported(run, short, outcome, tmp_path / "short")


def test_an_early_end_is_an_end(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    run = run_of()
    family, outcome = train_once(run, tiny_sd, pictures, tmp_path, duties_of=lambda _: [Scripted(stop=4)])
    assert (outcome.step, outcome.total_steps, outcome.interrupted, outcome.saved_step) == (4, 7, False, 4)
    expected = exported(run, family, outcome, tmp_path)
    listener, duty = Memory(), Scripted()
    family, again = train_once(run, tiny_sd, pictures, tmp_path, listener=listener, duties_of=lambda _: [duty])
    assert (again.step, again.interrupted, listener.steps, duty.asked) == (4, False, [], [])
    assert exported(run, family, again, tmp_path) == expected


@pytest.mark.parametrize(
    ("looks", "first", "then"),
    [(5, [2, 4], [6, 7]), (4, [2, 4], [6, 7]), (2, [2], [4, 6, 7]), (1, [], [2, 4, 6, 7])],
    ids=str,
)
def test_a_duty_that_was_done_is_not_done_again(
    looks: int, first: list[int], then: list[int], tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    left = iter(range(looks))
    one, other = Scripted(), Scripted()
    _, stopped = train_once(
        run_of(), tiny_sd, pictures, tmp_path, lambda: next(left, None) is None, duties_of=lambda _: [one]
    )
    assert (stopped.interrupted, stopped.saved_step, one.asked) == (True, looks, first)
    train_once(run_of(), tiny_sd, pictures, tmp_path, duties_of=lambda _: [other])
    assert (other.asked, other.finished) == (then, [2, 4, 6, 7])


class Clock:
    """Stands in the place of the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_duty_that_is_killed_costs_no_steps_that_were_to_be_saved(
    tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is due comes before the duties of its step, which may take long."""
    run = make_run(training={"steps": 5}, checkpoints={"everySeconds": 600})
    clock = Clock()
    monkeypatch.setattr("finetune_trainer.training.course.time", clock)

    class Slow(Memory):
        """Each step takes four minutes."""

        def step(self, report: StepReport) -> None:
            super().step(report)
            clock.now += 240

    def duty_of(family: Family) -> list[Scripted]:
        def killed(step: int) -> None:
            if step == 3:
                raise PowerCut

        return [Scripted(every=1, look=killed)]

    first, then, duty = Slow(), Memory(), Scripted(every=1)
    with pytest.raises(PowerCut):
        train_once(run, tiny_sd, pictures, tmp_path, listener=first, duties_of=duty_of)
    assert first.checkpoints == [3]
    family, outcome = train_once(run, tiny_sd, pictures, tmp_path, listener=then, duties_of=lambda _: [duty])
    assert (outcome.resumed_from_step, duty.asked, duty.finished) == (3, [3, 4, 5], [1, 2, 3, 4, 5])
    again, whole = train_once(run, tiny_sd, pictures, tmp_path / "whole")
    assert outcome.losses == whole.losses
    assert exported(run, family, outcome, tmp_path) == exported(run, again, whole, tmp_path / "whole")


@pytest.mark.parametrize("at", [4, 7])
def test_a_duty_that_was_stopped_is_done_before_the_next_step(
    at: int, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    run = run_of()
    family, outcome = train_once(run, tiny_sd, pictures, tmp_path / "whole", duties_of=lambda _: [Scripted()])
    expected = exported(run, family, outcome, tmp_path / "whole")
    before, stopping, after = Scripted(better=(at,)), Scripted(interrupted=at), Scripted()
    _, stopped = train_once(run, tiny_sd, pictures, tmp_path, duties_of=lambda _: [before, stopping, after])
    assert (stopped.interrupted, stopped.step, stopped.saved_step, stopped.best_step) == (True, at, at, at)
    assert (before.asked[-1], stopping.asked[-1], after.asked) == (at, at, [2, 4, 6][: (at - 1) // 2])
    first, second, third = Scripted(), Scripted(), Scripted()
    family, again = train_once(run, tiny_sd, pictures, tmp_path, duties_of=lambda _: [first, second, third])
    assert (again.interrupted, again.step, again.best_step) == (False, 7, at)
    assert first.asked == [step for step in (6, 7) if step > at], "it was done"
    assert second.asked == third.asked == [step for step in (4, 6, 7) if step >= at]
    assert again.losses == outcome.losses
    assert (exported(run, family, again, tmp_path) == expected) == (at == 7)
