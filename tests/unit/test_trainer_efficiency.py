"""How well a machine is used: step times, utilisation, shares of the time; in metrics and in /progress."""

from __future__ import annotations

import pytest
from finetune_trainer.describing import efficiency_of
from finetune_trainer.evaluation.duty import PicturesDuty
from finetune_trainer.evaluation.judge import Look
from finetune_trainer.telemetry.board import Board
from finetune_trainer.telemetry.efficiency import WINDOW, Efficiency, quantile
from finetune_trainer.telemetry.listener import EngineReport, JudgementReport, StepReport
from finetune_trainer.telemetry.logs import LogListener
from finetune_trainer.telemetry.memory import memory
from finetune_trainer.telemetry.metrics import Metrics
from prometheus_client import generate_latest


def report(step: int, seconds: float = 0.25, data: float = 0.0, ideal: float | None = None) -> StepReport:
    return StepReport(
        step=step,
        total_steps=5000,
        loss=0.5,
        learning_rate=1e-4,
        grad_norm=1.0,
        images=4,
        seconds=seconds,
        data_seconds=data,
        ideal_seconds=ideal,
    )


class Clock:
    """Stands still until it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([3.0], 0.5, 3.0),
        ([3.0], 0.99, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0),
        ([float(value) for value in range(1, 101)], 0.99, 99.0),
        ([float(value) for value in range(1, 1001)], 0.99, 990.0),
        ([1.0, 2.0], 1.0, 2.0),
        ([1.0, 2.0], 0.0, 1.0),
    ],
)
def test_a_quantile_is_a_value_that_was_measured(values: list[float], share: float, expected: float | None) -> None:
    assert quantile(values, share) == expected


def test_the_first_step_of_an_attempt_says_nothing_of_the_pace() -> None:
    efficiency = Efficiency()
    efficiency.begins(5000, None)
    efficiency.step(report(1, seconds=200.0, ideal=0.1))
    assert (efficiency.quantile(0.99), efficiency.images_per_second, efficiency.mfu) == (None, None, None)
    for step in range(2, 102):
        efficiency.step(report(step, seconds=2.0 if step == 101 else 0.5))
    assert (efficiency.quantile(0.5), efficiency.quantile(0.99), efficiency.quantile(1.0)) == (0.5, 0.5, 2.0)
    assert efficiency.images_per_second == 400 / 51.5
    assert efficiency.seconds["step"] == 251.5, "but its time was spent"


def test_the_pace_is_that_of_the_last_thousand_steps() -> None:
    efficiency = Efficiency()
    for step in range(1, WINDOW + 2):
        efficiency.step(report(step, seconds=9.0))
    for step in range(WINDOW):
        efficiency.step(report(step, seconds=1.0))
    assert efficiency.quantile(1.0) == 1.0


def test_utilisation_is_ideal_time_by_time() -> None:
    efficiency = Efficiency()
    for step, (seconds, ideal) in enumerate([(9.0, 0.1), (0.5, 0.1), (0.5, 0.3), (7.0, None)], 1):
        efficiency.step(report(step, seconds=seconds, ideal=ideal))
    assert efficiency.mfu == pytest.approx(0.4), "a step of which it is not known does not count"


def test_time_goes_to_what_it_was_spent_on() -> None:
    clock = Clock()
    efficiency = Efficiency(clock)
    efficiency.stage("Preparing")
    clock.now += 5
    efficiency.stage("DrawingBefore")
    clock.now += 10
    efficiency.judged(JudgementReport(0, {}, None, seconds=4.0))
    efficiency.stage("Training")
    efficiency.step(report(1, seconds=3.0, data=1.0))
    efficiency.spent("checkpoint", 0.5)
    efficiency.checkpoint(1, 9.0)
    efficiency.judged(JudgementReport(1, {}, None, seconds=2.0))
    efficiency.spent("drawing", 1.5)
    clock.now += 35
    assert efficiency.seconds == {"data": 1.0, "step": 2.0, "checkpoint": 0.5, "judging": 2.0, "drawing": 11.5}
    shares = efficiency.performance().time_shares
    assert shares == {"data": 0.02, "step": 0.04, "checkpoint": 0.01, "judging": 0.04, "drawing": 0.23}


def test_progress_and_metrics_say_it() -> None:
    board, metrics = Board("run-1", "pod-1"), Metrics("team", "my-dog", "lora")
    assert board.progress().performance is None, "nothing has begun"
    for listener in (board, metrics):
        listener.stage("Training")
        for step in range(1, 4):
            listener.step(report(step, ideal=0.1))
        listener.spent("drawing", 2.0)
    performance = board.progress().performance
    assert performance is not None
    assert (performance.step_seconds_p50, performance.step_seconds_p99, performance.mfu) == (0.25, 0.25, 0.4)
    assert performance.memory_bytes["resident"] > 1 << 20
    text = generate_latest(metrics.registry).decode()
    labels = 'finetunejob="my-dog",method="lora",namespace="team"'
    for line in (
        f"finetune_training_mfu{{{labels}}} 0.4",
        f'finetune_time_seconds_total{{activity="drawing",{labels}}} 2.0',
        'finetune_training_step_quantile_seconds{finetunejob="my-dog",method="lora",namespace="team",quantile="0.5"}',
    ):
        assert line in text


def test_what_is_not_measured_has_no_sample() -> None:
    metrics = Metrics("team", "my-dog", "lora")
    metrics.step(report(1))
    metrics.step(report(2))
    assert "finetune_training_mfu{" not in generate_latest(metrics.registry).decode()


def test_memory_has_every_kind() -> None:
    assert set(memory()) == {"resident", "device", "devicePeak"}


def test_memory_of_a_gpu_is_what_torch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which little is a tensor's between two recorded steps."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for name, held in {"memory_allocated": 1, "memory_reserved": 5, "max_memory_reserved": 7}.items():
        monkeypatch.setattr(torch.cuda, name, lambda held=held: held)
    found = memory()
    assert (found["device"], found["devicePeak"]) == (5, 7)


def test_the_report_has_it_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    monkeypatch.setattr(
        "finetune_trainer.telemetry.efficiency.memory",
        lambda: {"resident": 3 * gib, "device": gib, "devicePeak": 7 * gib},
    )
    clock = Clock()
    efficiency = Efficiency(clock)
    assert efficiency_of(efficiency)["Time of a step"] == "–", "of no step there is nothing to say"
    for step in range(1, 4):
        efficiency.step(report(step, seconds=1.54 if step == 3 else 0.035, data=0.01, ideal=0.01575))
    efficiency.spent("drawing", 1.0)
    clock.now += 10
    efficiency.planned(EngineReport("Captured", "Captured", "a recorded step is the fastest", 9 * gib))
    efficiency.planned(EngineReport("Eager", "Eager, activations computed twice", "Captured ran out", 7 * gib))
    assert efficiency_of(efficiency) == {
        "Pictures a second": "5.08",
        "Time of a step": "35.0 ms; 99 % within 1.54 s",
        "Model FLOPs utilisation": "2.0%",
        "Memory": "3.00 GiB",
        "Memory of the GPU, at most": "7.00 GiB",
        "Engine": "Eager, activations computed twice (Captured ran out; 7.0 GiB predicted)",
        "Time went into": "data 0.3%, step 15.8%, checkpoint 0.0%, judging 0.0%, drawing 10.0%, the rest 73.9%",
    }


def test_pictures_on_the_way_are_time_spent_drawing() -> None:
    clock, told = Clock(), []

    class Told(LogListener):
        def spent(self, activity: str, seconds: float) -> None:
            told.append((activity, seconds))

    def look() -> Look:
        clock.now += 4
        return Look((), ())

    PicturesDuty(5, look, Told(), clock)(5)
    assert told == [("drawing", 4.0)]
