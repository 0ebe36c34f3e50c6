"""One training of a comparison, measured: `python -m finetune_trainer.comparison.measuring RUN.json ROW.json`.

A process of its own for each, so that the peak of its memory is its own. It goes the trainer's usual way; only who
listens is another.
"""

from __future__ import annotations

import resource
import statistics
import sys
from pathlib import Path

import torch
from finetune_api import TrainingRun
from finetune_api.progress import Activity, Stage

from finetune_trainer.comparison.rows import OnTheWay, Row, key_of
from finetune_trainer.credentials import Credentials, Role
from finetune_trainer.generation.results import read_results
from finetune_trainer.launch import exiting_on_errors
from finetune_trainer.publish.store import open_store
from finetune_trainer.run import perform
from finetune_trainer.settings import Settings
from finetune_trainer.signals import Stop, stop_signals
from finetune_trainer.telemetry.listener import EngineReport, JudgementReport, Listeners, StepReport
from finetune_trainer.telemetry.logs import LogListener, configure_logging


class Stopwatch:
    """A Listener that adds up the time of the steps and looks at the memory when the training is over."""

    def __init__(self) -> None:
        self.step_seconds: list[float] = []
        self.judged_on_the_way: list[OnTheWay] = []
        self.peak_memory = 0

    def stage(self, name: Stage) -> None:
        if name == "DrawingAfter":
            self.peak_memory = peak_memory()

    def planned(self, report: EngineReport) -> None:
        """What is compared are settings."""

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        forget_peak_memory()

    def step(self, report: StepReport) -> None:
        self.step_seconds.append(report.seconds)

    def judged(self, report: JudgementReport) -> None:
        seconds = sum(self.step_seconds[: report.step])
        fidelity = report.figures.get("fidelity")
        self.judged_on_the_way.append(OnTheWay(step=report.step, seconds=seconds, fidelity=fidelity))

    def checkpoint(self, step: int, seconds: float) -> None:
        """Not a part of a step."""

    def spent(self, activity: Activity, seconds: float) -> None:
        """Not a part of a step."""

    def work(self, done: int, total: int, what: str) -> None:
        """Not a part of a step."""

    def message(self, text: str) -> None:
        """Not a part of a step."""


def measure(run: TrainingRun, settings: Settings, stop: Stop) -> Row:
    """Trains from the start, whatever an earlier attempt left: a time that is put together from two says little.

    Raises:
        RunError: with the exit code of how it ended.
    """
    key, watch = key_of(run), Stopwatch()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    perform(run, key, settings, Listeners([watch, LogListener()]), stop, overwrite=True)
    results = read_results(run.output.uri, open_store(run.output.uri, Credentials(Role.OUTPUT)))
    assert results is not None, "it was published a moment ago"
    judged = results.manifest.judged
    return Row(
        name=run.identity.name,
        technique=run.method.name,
        seed=run.training.seed,
        key=key,
        weights_bytes=sum(file.size for file in results.weights().files()),
        steps=results.manifest.training.steps,
        seconds=sum(watch.step_seconds),
        seconds_per_step=statistics.median(watch.step_seconds),
        peak_memory_bytes=watch.peak_memory,
        gpu_memory_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        base={name: figure.value for name, figure in judged.base.items()} if judged is not None else {},
        figures={name: figure.value for name, figure in judged.figures.items()} if judged is not None else {},
        judged=tuple(watch.judged_on_the_way),
        device=results.manifest.training.device,
        torch=torch.__version__,
        results=f"results/{Path(run.output.uri).name}/attempts/{results.manifest.attempt}",
    )


def forget_peak_memory() -> None:
    """From now on counts the peak (Linux: clear_refs of proc(5)); elsewhere it stays that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """Bytes resident at most."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(run_file: Path, row_file: Path) -> None:
    """Measures the TrainingRun in `run_file` and writes the row as JSON."""
    settings, stop = Settings(), Stop()
    configure_logging(settings.log_format)
    with exiting_on_errors():
        run = TrainingRun.model_validate_json(run_file.read_bytes())
        with stop_signals(stop, on_signal=lambda: None, on_last_call=lambda: None):
            row = measure(run, settings, stop)
        row_file.write_text(row.model_dump_json(by_alias=True, exclude_none=True), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
