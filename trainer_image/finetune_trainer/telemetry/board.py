"""What /progress answers: the latest of everything, in one place."""

from __future__ import annotations

import math
import threading

from finetune_api.progress import Activity, EngineInUse, Judgement, Progress, Stage

from finetune_trainer.telemetry.efficiency import Efficiency
from finetune_trainer.telemetry.listener import EngineReport, JudgementReport, StepReport
from finetune_trainer.telemetry.pace import Pace


class Board:
    """Written by the training thread, read by the server's threads and for the termination message."""

    def __init__(self, run_uid: str, pod_uid: str) -> None:
        self._run_uid = run_uid
        self._pod_uid = pod_uid
        self._lock = threading.Lock()
        self._pace = Pace()
        self._efficiency = Efficiency()
        self._stage: Stage = "Starting"
        self._step = 0
        self._total_steps = 0
        self._checkpoint_step: int | None = None
        self._resumed_from_step: int | None = None
        self._judgement: Judgement | None = None
        self._engine: EngineInUse | None = None

    def stage(self, name: Stage) -> None:
        with self._lock:
            self._efficiency.stage(name)
            self._stage = name

    def planned(self, report: EngineReport) -> None:
        engine = EngineInUse(
            kind=report.kind,
            does=report.does[:256],
            why=report.why[:512],
            predicted_bytes=report.predicted_bytes,
            fell_from=report.fell_from[:256] if report.fell_from is not None else None,
        )
        with self._lock:
            self._engine = engine

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        """The stage Training comes after this, so that none of its answers lacks where the attempt went on."""
        with self._lock:
            self._efficiency.begins(total_steps, resumed_from)
            self._step, self._total_steps = resumed_from or 0, total_steps
            self._resumed_from_step = resumed_from
            self._checkpoint_step = resumed_from

    def step(self, report: StepReport) -> None:
        with self._lock:
            self._pace.add(report)
            self._efficiency.step(report)
            self._step, self._total_steps = report.step, report.total_steps

    def checkpoint(self, step: int, seconds: float) -> None:
        with self._lock:
            self._efficiency.checkpoint(step, seconds)
            self._checkpoint_step = step

    def judged(self, report: JudgementReport) -> None:
        with self._lock:
            self._efficiency.judged(report)
            self._judgement = judgement_of(report)

    def spent(self, activity: Activity, seconds: float) -> None:
        with self._lock:
            self._efficiency.spent(activity, seconds)

    def work(self, done: int, total: int, what: str) -> None:
        """Not part of Progress, which counts optimizer steps."""

    def message(self, text: str) -> None:
        """Messages go to the log."""

    def progress(self) -> Progress:
        """A snapshot."""
        with self._lock:
            return Progress(
                run_uid=self._run_uid,
                pod_uid=self._pod_uid,
                stage=self._stage,
                step=self._step,
                total_steps=self._total_steps,
                loss=_finite(self._pace.loss),
                images_per_second=_finite(self._pace.images_per_second),
                seconds_left=_finite(self._pace.seconds_left) if self._stage == "Training" else None,
                checkpoint_step=self._checkpoint_step,
                resumed_from_step=self._resumed_from_step,
                judgement=self._judgement,
                engine=self._engine,
                performance=self._efficiency.performance() if self._stage != "Starting" else None,
            )


def judgement_of(report: JudgementReport) -> Judgement:
    """As it goes over the wire: what JSON cannot say is left out."""
    figures = {name: value for name, found in report.figures.items() if (value := _finite(found)) is not None}
    return Judgement(step=report.step, figures=figures, best_step=report.best_step)


def _finite(value: float | None) -> float | None:
    """JSON has no word for NaN, and neither has the operator."""
    return value if value is not None and math.isfinite(value) and abs(value) <= 1e12 else None
