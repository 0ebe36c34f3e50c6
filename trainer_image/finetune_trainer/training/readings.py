"""What a step came to, on its way from the device to the host."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from finetune_trainer.engines import StepResult

LATE_ON_GPU = 4
"""Steps that a GPU may be behind the host: it never waits for its next step, and a training that diverged is noticed
these few steps later. A CPU computes while the host waits for it; there is nothing to be late for."""


def lateness(device: torch.device) -> int:
    """How many steps later the figures of a step are read."""
    return LATE_ON_GPU if device.type == "cuda" else 0


@dataclass(frozen=True)
class Figures:
    """One optimizer step, in numbers of the host."""

    loss: float
    grad_norm: float
    skipped: bool
    """It was not finite, and changed nothing."""
    learning_rate: float
    seconds: float
    """Wall time on the device, from the end of the step before, or from when the host began with this one."""
    data_seconds: float
    """How long the host waited for the samples."""


class Reading:
    """The figures of one step, to be had when the device has computed them. Reading does not disturb what was given to
    the device since; it may be done in any thread, and more than once."""

    def __init__(self, result: StepResult, watch: Watch) -> None:
        self._rate, self._data_seconds, self._seconds = result.learning_rate, watch.data_seconds, 0.0
        figures = torch.stack([result.loss.detach().float(), result.grad_norm.float(), result.skipped.float()])
        self._began = self._ended = None
        if watch.event is None:
            self._host = figures
            self._seconds = time.perf_counter() - watch.began
        else:
            # pinned, or the copy would wait for the device
            self._host = torch.empty(3, pin_memory=True)
            self._host.copy_(figures, non_blocking=True)
            self._began, self._ended = watch.event, torch.cuda.Event(enable_timing=True)
            self._ended.record()

    def get(self) -> Figures:
        """Waits for the step where it is not done."""
        seconds = self._seconds
        if self._began is not None and self._ended is not None:
            self._ended.synchronize()
            seconds = self._began.elapsed_time(self._ended) / 1000
        loss, norm, skipped = self._host.tolist()
        return Figures(loss, norm, bool(skipped), self._rate, seconds, self._data_seconds)


class Watch:
    """Takes the time of one step: begins now."""

    def __init__(self, device: torch.device) -> None:
        self.began = time.perf_counter()
        self.data_seconds = 0.0
        self.event: torch.cuda.Event | None = None
        """On the device, when all that came before this step was done; None on a CPU."""
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def samples_are_there(self) -> None:
        """Until now the host waited for them."""
        self.data_seconds = time.perf_counter() - self.began
