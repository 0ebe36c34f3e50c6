"""Prometheus metrics of a training. Names are part of the interface: dashboards and alerts use them."""

from __future__ import annotations

from typing import get_args

from finetune_api.progress import Activity, Stage
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetune_trainer.telemetry.efficiency import Efficiency
from finetune_trainer.telemetry.listener import EngineReport, JudgementReport, StepReport
from finetune_trainer.telemetry.pace import Pace
from finetune_trainer.telemetry.use import LABELS, Use

STEP_BUCKETS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """A Listener with a registry of its own, labelled with the job."""

    def __init__(self, namespace: str, job: str, method: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = (namespace, job, method)
        self._pace, self._efficiency = Pace(), Efficiency()
        self._step = self._gauge("finetune_training_step", "Optimizer steps done")
        self._steps = self._gauge("finetune_training_steps", "Optimizer steps in all")
        self._loss = self._gauge("finetune_training_loss", "Mean loss of the last 20 steps")
        self._speed = self._gauge(
            "finetune_training_images_per_second", "Training pictures a second of the last 20 steps"
        )
        self._rate = self._gauge("finetune_training_learning_rate", "Learning rate of the last step")
        self._norm = self._gauge(
            "finetune_training_gradient_norm", "Length of the last step's gradient, before clipping"
        )
        self._seconds = Histogram(
            "finetune_training_step_seconds",
            "Wall time of an optimizer step",
            LABELS,
            registry=self.registry,
            buckets=STEP_BUCKETS,
        ).labels(*self._labels)
        self._images = self._counter("finetune_training_images", "Training pictures seen")
        self._skipped = self._counter(
            "finetune_training_skipped_steps", "Steps that changed nothing: their loss or gradient was not finite"
        )
        self._checkpoints = self._counter("finetune_checkpoints", "Complete checkpoints")
        self._checkpoint_seconds = self._gauge(
            "finetune_checkpoint_seconds", "Time until the last checkpoint was stored, in the background"
        )
        self._judgement = Gauge(
            "finetune_judgement", "Figures of the last judgement", (*LABELS, "figure"), registry=self.registry
        )
        self._judged_step = self._gauge("finetune_judgement_step", "Step whose weights were judged last")
        # without its labels there is no sample: no step is the best before one was judged
        self._best_step = Gauge(
            "finetune_judgement_best_step", "Best judged step by the job's rule", LABELS, registry=self.registry
        )
        self._evaluation_seconds = self._counter("finetune_evaluation_seconds", "Time spent judging on the way")
        self._phase = Gauge(
            "finetune_phase", "1 for the stage the trainer is in", (*LABELS, "phase"), registry=self.registry
        )
        self.registry.register(Use(self._labels, self._efficiency))
        self.stage("Starting")

    def stage(self, name: Stage) -> None:
        self._efficiency.stage(name)
        for stage in get_args(Stage):
            self._phase.labels(*self._labels, stage).set(stage == name)

    def planned(self, report: EngineReport) -> None:
        """Not a number."""

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        self._efficiency.begins(total_steps, resumed_from)
        self._step.set(resumed_from or 0)
        self._steps.set(total_steps)

    def step(self, report: StepReport) -> None:
        self._pace.add(report)
        self._efficiency.step(report)
        self._step.set(report.step)
        self._steps.set(report.total_steps)
        self._loss.set(report.loss)
        self._speed.set(self._pace.images_per_second or 0)
        self._rate.set(report.learning_rate)
        self._norm.set(report.grad_norm)
        self._seconds.observe(report.seconds)
        self._images.inc(report.images)
        self._skipped.inc(report.skipped)

    def checkpoint(self, step: int, seconds: float) -> None:
        self._efficiency.checkpoint(step, seconds)
        self._checkpoints.inc()
        self._checkpoint_seconds.set(seconds)

    def judged(self, report: JudgementReport) -> None:
        for name, value in report.figures.items():
            self._judgement.labels(*self._labels, name).set(value)
        self._judged_step.set(report.step)
        if report.best_step is not None:
            self._best_step.labels(*self._labels).set(report.best_step)
        self._evaluation_seconds.inc(report.seconds)
        self._efficiency.judged(report)

    def spent(self, activity: Activity, seconds: float) -> None:
        self._efficiency.spent(activity, seconds)

    def work(self, done: int, total: int, what: str) -> None:
        """Counted work has no metric: the stage says what is going on."""

    def message(self, text: str) -> None:
        """Messages go to the log."""

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, LABELS, registry=self.registry).labels(*self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, LABELS, registry=self.registry).labels(*self._labels)
