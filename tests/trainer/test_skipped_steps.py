"""A step whose loss or gradient is not finite changes nothing, is counted and told, and too many end the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetune_api import ExitCode
from finetune_trainer.data.samples import Batch, Samples
from finetune_trainer.engines import NonFiniteLoss
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.training.skips import Skips
from support.method_cases import METHODS, run_of
from support.stepping import numbers_of, spoilt, stepping
from support.training import Memory, make_run, train_once

CPU = torch.device("cpu")
RATES = {"AdamW": 1e-2, "AdamW8bit": 1e-2, "Adafactor": 1e-2, "Prodigy": 1.0}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


@pytest.mark.parametrize(
    ("case", "optimizer"),
    [*((case, "AdamW") for case in METHODS), *(("dreamBooth", name) for name in RATES if name != "AdamW")],
)
def test_a_poisoned_step_changes_nothing(case: str, optimizer: str, tiny_sd: Path, pictures: Path) -> None:
    """To the bit: weights, what keeps to a length, what the optimizer remembers, averages. And the training goes on as
    if that step had never been."""
    training = {"ema": True, "learningRate": RATES[optimizer], "optimizer": {"name": optimizer}}
    if optimizer == "AdamW":
        run = run_of(case, training=training | {"gradientAccumulationSteps": 2})
    else:
        run = make_run("dreamBooth", training=training)
    one, other = (stepping(run, EagerEngine(CPU), tiny_sd, pictures) for _ in range(2))
    for number in range(2):
        assert not one.step(number).skipped
        other.step(number)
    before = numbers_of(one.engine.state())
    result = one.poisoned(2)
    assert result.skipped
    assert not torch.isfinite(result.loss)
    assert_same(numbers_of(one.engine.state()), before)
    assert float(one.step(3).loss) == float(other.step(3).loss)
    assert_same(numbers_of(one.engine.state()), numbers_of(other.engine.state()))
    assert any(not torch.equal(value, before[name]) for name, value in numbers_of(one.engine.state()).items())


@pytest.mark.parametrize("optimizer", RATES)
def test_a_first_step_that_is_poisoned_leaves_nothing_behind(optimizer: str, tiny_sd: Path, pictures: Path) -> None:
    """Not a momentum of the gradient that was thrown away, nor a step that was counted."""
    run = make_run(training={"learningRate": RATES[optimizer], "optimizer": {"name": optimizer}, "ema": True})
    one, other = (stepping(run, EagerEngine(CPU), tiny_sd, pictures) for _ in range(2))
    assert one.poisoned(0, float("inf")).skipped
    for number in (1, 2):
        assert float(one.step(number).loss) == float(other.step(number).loss)
    assert_same(numbers_of(one.engine.state()), numbers_of(other.engine.state()))


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Spoils the batches of `steps`, 1 for the first."""
    whole: Callable[[Samples, int], list[Batch]] = Samples.step

    def partly(samples: Samples, step: int) -> list[Batch]:
        batches = whole(samples, step)
        return [spoilt(batch) for batch in batches] if step + 1 in steps else batches

    monkeypatch.setattr(Samples, "step", partly)


def test_single_ones_are_counted_and_told(
    tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2, 4, 5)
    listener = Memory()
    _, outcome = train_once(make_run(), tiny_sd, pictures, tmp_path, listener=listener)
    assert (outcome.step, outcome.skipped) == (6, 3)
    assert [step for step, loss in enumerate(outcome.losses, 1) if loss != loss] == [2, 4, 5]
    assert outcome.loss == pytest.approx(sum(outcome.losses[i] for i in (0, 2, 5)) / 3)
    told = [message for message in listener.messages if "changed nothing" in message]
    assert [message.split()[1] for message in told] == ["2", "4", "5"]
    assert told[0] == (
        "Step 2 of 6 changed nothing: its loss is nan and its gradient nan (1 such steps so far; 3 in a row end the "
        "training)"
    )


def test_three_in_a_row_end_the_training_over_interruptions_too(
    tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two before a pod is taken away, and one after it."""
    run = make_run(training={"steps": 8})
    poison(monkeypatch, 2, 4, 5, 6)
    asked = iter(range(5))
    _, stopped = train_once(run, tiny_sd, pictures, tmp_path, lambda: next(asked, None) is None)
    assert (stopped.step, stopped.interrupted, stopped.skipped) == (5, True, 3)
    with pytest.raises(NonFiniteLoss, match=r"^steps 4 to 6 of 8: the loss is nan and its gradient nan: .*diverged"):
        train_once(run, tiny_sd, pictures, tmp_path)


def test_the_count_survives(tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 2, 4, 5)
    asked = iter(range(4))
    train_once(make_run(), tiny_sd, pictures, tmp_path, lambda: next(asked, None) is None)
    _, outcome = train_once(make_run(), tiny_sd, pictures, tmp_path)
    assert (outcome.resumed_from_step, outcome.step, outcome.skipped) == (4, 6, 3)


@pytest.mark.parametrize(
    ("precision", "skipped", "ends", "advice"),
    [
        ("bf16", [1, 2, 3], 3, "before any weight was changed.*use training.precision fp32, or another baseModel"),
        ("fp32", [1, 2, 3], 3, "before any weight was changed: the base model's weights are damaged; use another base"),
        ("fp32", [4, 5, 6], 6, r"would again; use a smaller training\.learningRate$"),
        ("bf16", [2, 3, 5, 6, 7, 8], 7, "diverged, .* a smaller training.learningRate, or training.precision fp32"),
        ("bf16", [1, 2, 4, 5, 7, 8], None, ""),
        ("fp16", list(range(1, 10)), None, ""),
        ("fp16", list(range(1, 11)), 10, "does not stand this precision.*training.precision bf16 or fp32"),
        ("fp16", [*range(1, 10), *range(11, 21)], 20, "diverged"),
    ],
)
def test_how_many_are_too_many(precision: str, skipped: list[int], ends: int | None, advice: str) -> None:
    skips = Skips(precision, 30)  # type: ignore[arg-type]  # one of the three
    ended = None
    for step in range(1, 31):
        try:
            skips.hear(step, 0.5, float("inf"), step in skipped)
        except NonFiniteLoss as error:
            ended = step
            assert error.exit_code == ExitCode.BAD_CONFIGURATION
            with pytest.raises(NonFiniteLoss, match=advice):
                raise
            break
    assert ended == ends
    assert skips.count == len([step for step in skipped if ended is None or step <= ended])


def test_a_training_of_nothing_but_skipped_steps_is_none() -> None:
    skips = Skips("fp32", 2)
    assert skips.hear(1, float("nan"), 1.0, True) is not None
    with pytest.raises(NonFiniteLoss, match=r"^steps 1 to 2 of 2: .* before any weight was changed"):
        skips.hear(2, float("nan"), 1.0, True)


def test_a_log_stays_readable() -> None:
    skips = Skips("fp16", 1000)
    told = [step for step in range(1, 201) if skips.hear(step, 0.5, float("inf"), step % 2 == 0) is not None]
    assert told == [2, 4, 6, 8, 16, 32, 64, 128]
