"""How fast a training goes, from its last steps."""

from __future__ import annotations

from collections import deque

from finetune_trainer.telemetry.listener import StepReport

WINDOW = 20


class Pace:
    """Means over the last 20 steps: long enough to be calm, short enough to be true."""

    def __init__(self) -> None:
        self._reports: deque[StepReport] = deque(maxlen=WINDOW)

    def add(self, report: StepReport) -> None:
        self._reports.append(report)

    @property
    def loss(self) -> float | None:
        """Mean loss."""
        return sum(r.loss for r in self._reports) / len(self._reports) if self._reports else None

    @property
    def images_per_second(self) -> float | None:
        """Training pictures a second of training; drawing and checkpoints do not count."""
        seconds = sum(r.seconds for r in self._reports)
        return sum(r.images for r in self._reports) / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at this pace."""
        if not self._reports:
            return None
        last = self._reports[-1]
        mean = sum(r.seconds for r in self._reports) / len(self._reports)
        return max(0, last.total_steps - last.step) * mean


def figures(pace: Pace) -> str:
    """The pace in words: "loss 0.1234, 31.2 images/s, 0:42 left"."""
    if pace.loss is None or pace.images_per_second is None or pace.seconds_left is None:
        return ""
    minutes, seconds = divmod(round(pace.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"loss {pace.loss:.4f}, {pace.images_per_second:.1f} images/s, {left} left"
