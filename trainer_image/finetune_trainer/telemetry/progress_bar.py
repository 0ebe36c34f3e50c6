"""The progress bar of a laptop run: one line a stage."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from finetune_api.progress import Activity, Stage
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from finetune_trainer.telemetry.listener import EngineReport, JudgementReport, StepReport, told
from finetune_trainer.telemetry.pace import Pace, figures
from finetune_trainer.telemetry.stages import WORDS


class ProgressBar:
    """A Listener that draws on a terminal while its `with` block runs."""

    def __init__(self, console: Console) -> None:
        self._pace = Pace()
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("[dim]{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        self._bar.stop()

    def stage(self, name: Stage) -> None:
        self._finish()
        if name != "Done":
            self._task = self._bar.add_task(WORDS[name], total=None, count="", figures="")

    def planned(self, report: EngineReport) -> None:
        self._bar.console.print(report.told, highlight=False, markup=False)

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        if resumed_from is not None:
            self._bar.console.print(f"Going on from the checkpoint of step {resumed_from}")

    def step(self, report: StepReport) -> None:
        self._pace.add(report)
        self._count(report.step, report.total_steps, figures(self._pace))

    def checkpoint(self, step: int, seconds: float) -> None:
        """Checkpoints on a laptop are not worth a line."""

    def judged(self, report: JudgementReport) -> None:
        self._bar.console.print(told(report), highlight=False)

    def spent(self, activity: Activity, seconds: float) -> None:
        """The report has it."""

    def work(self, done: int, total: int, what: str) -> None:
        self._count(done, total, what)

    def message(self, text: str) -> None:
        self._bar.console.print(text, highlight=False)

    def _count(self, done: int, total: int, text: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, count=f"{done}/{total}", figures=text)

    def _finish(self) -> None:
        """Fills the bar of the stage that is over, and stops its clock."""
        if self._task is not None:
            task = next(t for t in self._bar.tasks if t.id == self._task)
            total = task.total or 1
            self._bar.update(self._task, total=total, completed=total)
            self._bar.stop_task(self._task)
            self._task = None
