"""`finetune compare` from the command line to the exit code: trains what is missing, one after the other, and prints
the table."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api import ExitCode
from rich.console import Console
from rich.markup import escape

from finetune_trainer.comparison.rows import Row, append_row, read_rows
from finetune_trainer.comparison.table import conditions, markdown, size, summary
from finetune_trainer.comparison.trials import Trial, plan_trials
from finetune_trainer.errors import ConfigurationError, DataError, Interrupted, RunError
from finetune_trainer.local_run import load_runs
from finetune_trainer.paths import make_out, shown
from finetune_trainer.settings import Settings
from finetune_trainer.signals import Stop, stop_signals

ERRORS: dict[int, type[RunError]] = {
    ExitCode.BAD_DATA: DataError,
    ExitCode.BAD_CONFIGURATION: ConfigurationError,
    ExitCode.INTERRUPTED: Interrupted,
}
LAST_LINES = 5
TABLE, FIGURES, SHEET = "comparison.md", "comparison.json", "contact_sheet.png"


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for."""

    file: Path
    seeds: int
    only: Sequence[str]
    out: Path
    fidelity: float


class Process:
    """At most one process at a time, that a signal is passed on to. It has a session of its own, so that Ctrl-C
    reaches it once, and not from the terminal too."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str], environment: Mapping[str, str], log_file: Path) -> int:
        """Returns its exit code; its output goes to `log_file`. It never outlives this call."""
        with log_file.open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            self._process = process
            try:
                return process.wait()
            finally:
                self._process = None
                process.kill()
                process.wait()

    def stop(self) -> None:
        """Asks it to stop, if there is one."""
        if self._process is not None:
            # not SIGINT: what a script starts in the background is born deaf to it
            self._process.send_signal(signal.SIGTERM)


def compare(wishes: Wishes, settings: Settings) -> None:
    """Measures what is not measured yet; writes and prints the table.

    Raises:
        RunError: with the exit code of how it ended.
    """
    folder = wishes.out.expanduser().absolute()
    trials = plan_trials(load_runs(wishes.file), wishes.seeds, wishes.only, folder)
    make_out(wishes.out, folder)
    console = Console(soft_wrap=True, highlight=False)
    stop, process = Stop(), Process()

    def on_signal() -> None:
        console.print("Stopping this training")
        process.stop()

    with stop_signals(stop, on_signal, on_last_call=lambda: None):
        rows = _measured(trials, folder, settings, console, stop, process)
    _conclude(rows, wishes, folder, console)


def _measured(
    trials: Sequence[Trial], folder: Path, settings: Settings, console: Console, stop: Stop, process: Process
) -> dict[str, Row]:
    """Label → row of every trial."""
    known = {(row.name, row.seed, row.key): row for row in read_rows(folder)}
    rows: dict[str, Row] = {}
    for number, trial in enumerate(trials, 1):
        row = known.get((trial.name, trial.seed, trial.key))
        if row is None:
            if stop():
                raise Interrupted("stopped; what is measured is kept, and the same command goes on")
            row = _measure(trial, folder, settings, process)
            append_row(folder, row)
            console.print(f"{number} of {len(trials)}  {escape(_told(trial, row))}")
        rows[trial.label] = row
    return rows


def _measure(trial: Trial, folder: Path, settings: Settings, process: Process) -> Row:
    """In a process of its own, for its memory."""
    work = folder / "work" / trial.label
    work.mkdir(parents=True, exist_ok=True)
    run_file, row_file, log_file = work / "run.json", work / "row.json", work / "log.txt"
    row_file.unlink(missing_ok=True)
    run_file.write_text(trial.run.to_json(), "utf-8")
    environment = {
        **os.environ,
        "FINETUNE_WORK_DIR": str(work),
        "FINETUNE_CACHE_DIR": str(settings.cache()),
        "FINETUNE_LOG_FORMAT": "text",
    }
    command = [sys.executable, "-m", "finetune_trainer.comparison.measuring", str(run_file), str(row_file)]
    code = process.run(command, environment, log_file)
    if code == ExitCode.INTERRUPTED:
        raise Interrupted("stopped; what is measured is kept, and the same command goes on")
    if code != 0 or not row_file.is_file():
        last = "\n".join(log_file.read_text("utf-8").splitlines()[-LAST_LINES:])
        raise ERRORS.get(code, RunError)(f"{trial.label} ended with {code} ({log_file}):\n{last}")
    return Row.model_validate_json(row_file.read_bytes())


def _told(trial: Trial, row: Row) -> str:
    figures = ", ".join(f"{name} {row.figures[name]:.2f}" for name in ("fidelity", "leak") if name in row.figures)
    return f"{trial.label}: {row.seconds:.0f} s, {size(row.weights_bytes)}{f', {figures}' if figures else ''}"


def _conclude(found: dict[str, Row], wishes: Wishes, folder: Path, console: Console) -> None:
    # Pillow and what the trainer draws with take a moment to import
    from finetune_trainer.comparison.pictures import comparison_sheet

    rows = list(found.values())
    notes = {"Machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {os.environ.get('OMP_NUM_THREADS', 'all')} used"}
    table = markdown(rows, wishes.fidelity)
    text = f"{table}\n{conditions(rows, wishes.fidelity, notes)}"
    (folder / TABLE).write_text(text, "utf-8")
    figures = {
        "fidelity": wishes.fidelity,
        "summary": summary(rows, wishes.fidelity),
        "rows": [row.model_dump(mode="json", by_alias=True, exclude_none=True) for row in rows],
    }
    (folder / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    comparison_sheet(rows, folder).save(folder / SHEET)
    print(text)
    for name, file in (("table", TABLE), ("figures", FIGURES), ("contact sheet", SHEET)):
        console.print(f"[green]{name:>14}[/]  {escape(shown(f'file://{folder / file}'))}")
