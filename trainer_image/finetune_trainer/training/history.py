"""What became of each step so far, told in order; the last ones may still be on their way from the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from finetune_trainer.telemetry.listener import Listener, StepReport
from finetune_trainer.training.readings import Figures, Reading
from finetune_trainer.training.skips import Skips

LOSS_WINDOW = 20


@dataclass(frozen=True)
class Past:
    """All steps of a training up to some step, earlier attempts included."""

    losses: tuple[float, ...] = ()
    learning_rates: tuple[float, ...] = ()
    """An optimizer may find them out itself, and so no function of the step gives them."""
    skipped: int = 0
    """Steps that were not finite, and changed nothing."""
    skipped_in_a_row: int = 0
    """Of these, the last ones."""

    def then(self, figures: Figures) -> Past:
        """With one more step."""
        return Past(
            (*self.losses, figures.loss),
            (*self.learning_rates, figures.learning_rate),
            self.skipped + figures.skipped,
            self.skipped_in_a_row + 1 if figures.skipped else 0,
        )


class History:
    """Readings go in as steps are given to the device; what they say comes out some steps later."""

    def __init__(
        self,
        listener: Listener,
        skips: Skips,
        total_steps: int,
        images: int,
        late: int,
        ideal_seconds: float | None = None,
    ) -> None:
        """
        Args:
            skips: hear of each step.
            images: the user's pictures in a step, over all processes.
            late: how many readings may be on their way.
            ideal_seconds: what the arithmetic of a step would take at the device's peak, where that is known.
        """
        self._listener, self._skips = listener, skips
        self._total, self._images, self._late, self._ideal = total_steps, images, late, ideal_seconds
        self._losses: list[float] = []
        self._rates: list[float] = []
        self._coming: deque[Reading] = deque()

    def load(self, past: Past) -> None:
        """Goes on from `past`."""
        self._losses, self._rates = list(past.losses), list(past.learning_rates)
        self._skips.count, self._skips.in_a_row = past.skipped, past.skipped_in_a_row

    @property
    def step(self) -> int:
        """Optimizer steps done, or given to the device."""
        return len(self._losses) + len(self._coming)

    @property
    def loss(self) -> float:
        """Mean over the last steps that are known, those without a finite one left out."""
        window = [loss for loss in self._losses[-LOSS_WINDOW:] if math.isfinite(loss)]
        return sum(window) / len(window) if window else 0.0

    @property
    def past(self) -> Past:
        """All that is known."""
        return Past(tuple(self._losses), tuple(self._rates), self._skips.count, self._skips.in_a_row)

    def add(self, reading: Reading) -> None:
        """One more step was given to the device; those that may not be late any longer are read and told.

        Raises:
            NonFiniteLoss: too many were not finite.
        """
        self._coming.append(reading)
        while len(self._coming) > self._late:
            self._hear(self._coming.popleft().get())

    def settle(self) -> None:
        """Reads all, waiting for the device. Raises as `add` does."""
        while self._coming:
            self._hear(self._coming.popleft().get())

    def frozen(self) -> Callable[[], Past]:
        """For a checkpoint of this moment: to be called in any thread, waits there for what is on its way."""
        past, coming = self.past, tuple(self._coming)

        def whole() -> Past:
            found = past
            for reading in coming:
                found = found.then(reading.get())
            return found

        return whole

    def _hear(self, figures: Figures) -> None:
        self._losses.append(figures.loss)
        self._rates.append(figures.learning_rate)
        step = len(self._losses)
        told = self._skips.hear(step, figures.loss, figures.grad_norm, figures.skipped)
        if told is not None:
            self._listener.message(told)
        self._listener.step(
            StepReport(
                step=step,
                total_steps=self._total,
                loss=self.loss,
                learning_rate=figures.learning_rate,
                grad_norm=figures.grad_norm,
                images=self._images,
                seconds=figures.seconds,
                data_seconds=figures.data_seconds,
                ideal_seconds=self._ideal,
                skipped=figures.skipped,
            )
        )
