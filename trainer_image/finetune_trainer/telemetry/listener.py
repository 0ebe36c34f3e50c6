"""What a run tells while it works. Training code calls a Listener and knows nothing of bars, metrics or logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_api.progress import Stage


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


class Listener(Protocol):
    """Hears what happens. An implementation must be quick and must not raise."""

    def stage(self, name: Stage) -> None:
        """A new stage begins."""

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        """The stage Training is next: from the checkpoint of this step, or from the start."""

    def step(self, report: StepReport) -> None:
        """An optimizer step is done."""

    def checkpoint(self, step: int, seconds: float) -> None:
        """A checkpoint of this step is complete, and took so long."""

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

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        for listener in self._listeners:
            listener.begins(total_steps, resumed_from)

    def step(self, report: StepReport) -> None:
        for listener in self._listeners:
            listener.step(report)

    def checkpoint(self, step: int, seconds: float) -> None:
        for listener in self._listeners:
            listener.checkpoint(step, seconds)

    def work(self, done: int, total: int, what: str) -> None:
        for listener in self._listeners:
            listener.work(done, total, what)

    def message(self, text: str) -> None:
        for listener in self._listeners:
            listener.message(text)
