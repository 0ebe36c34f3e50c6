"""Log lines: JSON in a pod, plain text where there is no terminal to draw on."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Literal

from finetune_api.progress import Activity, Stage
from pythonjsonlogger.json import JsonFormatter

from finetune_trainer.telemetry.listener import EngineReport, JudgementReport, StepReport, told
from finetune_trainer.telemetry.pace import Pace, figures
from finetune_trainer.telemetry.stages import WORDS

log = logging.getLogger("finetune")

SECONDS_BETWEEN_LINES = 10.0

# Libraries read these when they are imported, which is after logging was configured.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


def configure_logging(style: Literal["text", "json"], fields: dict[str, str] | None = None) -> None:
    """Sends all logging to stderr: ours from INFO on, that of libraries from WARNING on, their progress bars off.

    `fields` stand in each JSON line.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(
            JsonFormatter(
                "{asctime}{levelname}{name}{message}",
                style="{",
                datefmt="%Y-%m-%dT%H:%M:%S%z",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                static_fields=fields or {},
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    log.setLevel(logging.INFO)


class LogListener:
    """A Listener that writes lines: every stage, and steps at most every ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pace = Pace()
        self._last_line = -SECONDS_BETWEEN_LINES

    def stage(self, name: Stage) -> None:
        log.info("%s", WORDS[name], extra={"stage": name})
        self._last_line = -SECONDS_BETWEEN_LINES  # the first step of a stage is always told

    def planned(self, report: EngineReport) -> None:
        log.info("%s", report.told, extra={"engine": report.kind})

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        if resumed_from is not None:
            log.info("going on from the checkpoint of step %d", resumed_from, extra={"step": resumed_from})

    def step(self, report: StepReport) -> None:
        self._pace.add(report)
        if report.step == report.total_steps or self._due():
            log.info(
                "step %d of %d: %s",
                report.step,
                report.total_steps,
                figures(self._pace),
                extra={
                    "step": report.step,
                    "total_steps": report.total_steps,
                    "loss": self._pace.loss,
                    "learning_rate": report.learning_rate,
                    "images_per_second": self._pace.images_per_second,
                },
            )

    def checkpoint(self, step: int, seconds: float) -> None:
        log.info("checkpoint of step %d in %.1f s", step, seconds, extra={"step": step, "seconds": seconds})

    def judged(self, report: JudgementReport) -> None:
        log.info("%s", told(report), extra={"step": report.step, "judgement": dict(report.figures)})

    def spent(self, activity: Activity, seconds: float) -> None:
        """The report has it."""

    def work(self, done: int, total: int, what: str) -> None:
        if done == total or self._due():
            log.info("%d of %d %s", done, total, what, extra={"done": done, "total": total})

    def message(self, text: str) -> None:
        log.info("%s", text)

    def _due(self) -> bool:
        now = self._clock()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True
