"""How well an attempt uses its machine: pace, utilisation, and what its time goes into."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import get_args

from finetune_api.progress import Activity, Performance, Stage

from finetune_trainer.telemetry.listener import EngineReport, JudgementReport, StepReport
from finetune_trainer.telemetry.memory import memory

WINDOW = 1000
"""Steps: enough for a 99th percentile, few enough to be about now."""
DRAWING: frozenset[Stage] = frozenset({"DrawingClassImages", "DrawingBefore", "DrawingAfter", "Sampling"})


class Efficiency:
    """A Listener. The first step of an attempt counts only as time: it compiles, captures and fills caches."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._stage: Stage = "Starting"
        self._stage_began = self._began
        self.engine: EngineReport | None = None
        """The last one that was chosen."""
        self._first = True
        self._steps: deque[StepReport] = deque(maxlen=WINDOW)
        self._spent: dict[Activity, float] = dict.fromkeys(get_args(Activity), 0.0)

    def stage(self, name: Stage) -> None:
        now = self._clock()
        if self._stage in DRAWING:
            self._spent["drawing"] += now - self._stage_began
        self._stage, self._stage_began = name, now

    def planned(self, report: EngineReport) -> None:
        self.engine = report

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        self._first = True

    def step(self, report: StepReport) -> None:
        # a host that waits longer than the step took waited while the device was busy
        waited = min(report.data_seconds, report.seconds)
        self._spent["data"] += waited
        self._spent["step"] += report.seconds - waited
        if not self._first:
            self._steps.append(report)
        self._first = False

    def checkpoint(self, step: int, seconds: float) -> None:
        """It was stored while the training went on; what that stood still for, `spent` tells."""

    def judged(self, report: JudgementReport) -> None:
        self.spent("judging", report.seconds)

    def spent(self, activity: Activity, seconds: float) -> None:
        # the time of a stage that draws counts as a whole, when it is over
        if self._stage not in DRAWING:
            self._spent[activity] += seconds

    def work(self, done: int, total: int, what: str) -> None:
        """The stage says what it is for."""

    def message(self, text: str) -> None:
        """Messages go to the log."""

    @property
    def seconds(self) -> dict[Activity, float]:
        """Time that went into each activity so far; of a stage that draws, once it is over."""
        return dict(self._spent)

    @property
    def images_per_second(self) -> float | None:
        """The user's pictures a second of training."""
        seconds = sum(report.seconds for report in self._steps)
        return sum(report.images for report in self._steps) / seconds if seconds > 0 else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation (https://arxiv.org/abs/2204.02311, appendix B), 0 … 1."""
        known = [report for report in self._steps if report.ideal_seconds is not None]
        seconds = sum(report.seconds for report in known)
        return sum(report.ideal_seconds or 0.0 for report in known) / seconds if seconds > 0 else None

    def quantile(self, share: float) -> float | None:
        """Time of a step that `share` of the last steps did not exceed."""
        return quantile([report.seconds for report in self._steps], share)

    def performance(self) -> Performance:
        """All of it, as it goes over the wire."""
        lasted = self._clock() - self._began
        shares = {what: min(1.0, seconds / lasted) for what, seconds in self._spent.items() if lasted > 0}
        return Performance(
            step_seconds_p50=self.quantile(0.5),
            step_seconds_p99=self.quantile(0.99),
            mfu=self.mfu,
            memory_bytes=memory(),
            time_shares=shares,
        )


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest of `values` that at least `share` (0 … 1) of them do not exceed: one that was measured, not one
    between two. None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
