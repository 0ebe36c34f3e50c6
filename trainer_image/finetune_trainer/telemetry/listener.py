"""What a run tells while it works. Training code calls a Listener and knows nothing of bars, metrics or logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_api.engine import EngineKind
from finetune_api.progress import Activity, Stage


@dataclass(frozen=True)
class StepReport:
    """One optimizer step."""

    step: int
    """Steps done, this one included: 1 … total_steps."""
    total_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    """Length of the gradient before clipping."""
    images: int
    """Training pictures of this step, over all micro-batches; class pictures are not counted."""
    seconds: float
    """Wall time of the step."""
    data_seconds: float = 0.0
    """Of these, waiting for the samples."""
    ideal_seconds: float | None = None
    """What the arithmetic of the step would take at the device's measured peak; None where that is not measured."""
    skipped: bool = False
    """It was not finite, and changed nothing."""


@dataclass(frozen=True)
class JudgementReport:
    """What was found about the weights of one step."""

    step: int
    figures: Mapping[str, float]
    """Name → value, the names of finetune_trainer.evaluation.judgement."""
    best_step: int | None
    """The best step so far by the rule of spec.judgement; none where only the end is judged."""
    seconds: float
    """Time that drawing and judging took; 0 where an earlier judgement is told again."""


@dataclass(frozen=True)
class EngineReport:
    """How steps are going to be executed."""

    kind: EngineKind
    does: str
    """The engine with its options, for people."""
    why: str
    predicted_bytes: int | None
    """Of the device's memory at the peak; None where that is not planned, as on a CPU."""
    fell_from: str | None = None
    """What was given up for it, for people; None where nothing was."""

    @property
    def told(self) -> str:
        """A line for people."""
        size = f"; {self.predicted_bytes / 2**30:.1f} GiB predicted" if self.predicted_bytes is not None else ""
        return f"engine: {self.does} ({self.why}{size})"


def told(report: JudgementReport) -> str:
    """A line for people."""
    figures = ", ".join(f"{name} {value:.3g}" for name, value in report.figures.items())
    best = f"; the best so far is step {report.best_step}" if report.best_step is not None else ""
    return f"step {report.step} was judged: {figures}{best}"


class Listener(Protocol):
    """Hears what happens. An implementation must be quick and must not raise."""

    def stage(self, name: Stage) -> None:
        """A new stage begins."""

    def planned(self, report: EngineReport) -> None:
        """An engine was chosen; another one after it did not do."""

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        """The stage Training is next: from the checkpoint of this step, or from the start."""

    def step(self, report: StepReport) -> None:
        """An optimizer step is done."""

    def checkpoint(self, step: int, seconds: float) -> None:
        """A checkpoint of this step is complete, so long after it was begun. The training went on meanwhile: what it
        stood still for, `spent` tells."""

    def judged(self, report: JudgementReport) -> None:
        """Pictures by the weights of a step were judged."""

    def spent(self, activity: Activity, seconds: float) -> None:
        """The training stood still so long for something that no other call tells the time of."""

    def work(self, done: int, total: int, what: str) -> None:
        """Counted work other than steps: pictures drawn, files fetched. `what` is a plural noun."""

    def message(self, text: str) -> None:
        """A line for people."""


class Listeners:
    """Several listeners as one."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = tuple(listeners)

    def stage(self, name: Stage) -> None:
        for listener in self._listeners:
            listener.stage(name)

    def planned(self, report: EngineReport) -> None:
        for listener in self._listeners:
            listener.planned(report)

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        for listener in self._listeners:
            listener.begins(total_steps, resumed_from)

    def step(self, report: StepReport) -> None:
        for listener in self._listeners:
            listener.step(report)

    def checkpoint(self, step: int, seconds: float) -> None:
        for listener in self._listeners:
            listener.checkpoint(step, seconds)

    def judged(self, report: JudgementReport) -> None:
        for listener in self._listeners:
            listener.judged(report)

    def spent(self, activity: Activity, seconds: float) -> None:
        for listener in self._listeners:
            listener.spent(activity, seconds)

    def work(self, done: int, total: int, what: str) -> None:
        for listener in self._listeners:
            listener.work(done, total, what)

    def message(self, text: str) -> None:
        for listener in self._listeners:
            listener.message(text)
