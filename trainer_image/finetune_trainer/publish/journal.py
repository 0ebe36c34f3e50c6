"""The record of this attempt, kept up to date in the store by a thread of its own: nothing waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from finetune_api import ExitCode
from finetune_api.progress import Activity, Stage

from finetune_trainer.errors import RunError
from finetune_trainer.publish.attempts import AttemptRecord, for_manifest, read_attempts, record_key, told
from finetune_trainer.publish.leftovers import BEAT_SECONDS
from finetune_trainer.publish.manifest import ManifestAttempt
from finetune_trainer.publish.store import Store
from finetune_trainer.telemetry.listener import EngineReport, JudgementReport, StepReport

log = logging.getLogger("finetune")

LAST_WRITE_SECONDS = 10.0
LONGEST_MESSAGE = 1024


@dataclass(frozen=True)
class Summary:
    """The attempts at a run in figures."""

    attempts: int
    lost_steps: int
    at_least: bool
    """Whether more steps may have been lost than is known."""

    def __str__(self) -> str:
        if self.attempts == 1:
            return "1"
        return f"{self.attempts}; {'at least ' if self.at_least else ''}{self.lost_steps} steps were done again"


class Journal:
    """A Listener. While its `with` block runs, the record in the store is never older than a minute or so.

    A store that fails costs the record, never the run.
    """

    def __init__(
        self, store: Store, run_uid: str, attempt: str, pod_name: str | None, say: Callable[[str], None]
    ) -> None:
        """Reads what earlier attempts said, tells it by `say`, and writes the first record.

        Raises:
            RunError: the store failed.
        """
        self._store, self._say = store, say
        self._earlier = [found.record for found in read_attempts(store, run_uid) if found.record.attempt != attempt]
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._closed = False
        self._record = AttemptRecord(
            run_uid=run_uid,
            attempt=attempt,
            number=max((record.number for record in self._earlier), default=0) + 1,
            pod_name=pod_name,
            started=_now(),
        )
        self._thread = threading.Thread(target=self._keep, name="journal", daemon=True)
        for record in self._earlier:
            say(told(record))
        self.beat()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close(ExitCode.DONE)
        elif isinstance(error, RunError):
            self.close(error.exit_code, str(error))
        elif isinstance(error, Exception):
            self.close(ExitCode.ERROR, type(error).__name__)

    def beat(self) -> None:
        """Writes the record now. Raises RunError."""
        with self._lock:
            record = self._record
        self._store.put_bytes(record_key(record.attempt), record.to_bytes())

    def close(self, code: ExitCode, message: str = "") -> None:
        """How this attempt ended, as its last word. Waits some seconds for the store to have it."""
        self._change(ended=_now(), exit_code=int(code), message=message[:LONGEST_MESSAGE])
        self._closed = True
        self._news.set()
        self._thread.join(LAST_WRITE_SECONDS)

    def attempts(self) -> tuple[ManifestAttempt, ...]:
        """All attempts that are known, this one last."""
        with self._lock:
            return for_manifest([*self._earlier, self._record])

    def summary(self) -> Summary:
        """All attempts that there were, and the steps that the known ones lost."""
        attempts = self.attempts()
        return Summary(
            self._record.number,
            sum(attempt.lost_steps or 0 for attempt in attempts),
            any(attempt.at_least for attempt in attempts),
        )

    def stage(self, name: Stage) -> None:
        self._change(stage=name)
        self._news.set()

    def planned(self, report: EngineReport) -> None:
        """The manifest has the settings, and the log what was made of them."""

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        self._change(step=resumed_from or 0, resumed_from_step=resumed_from)
        if self._record.number > 1:
            self._say(f"attempts so far: {self.summary()}")
        self._news.set()

    def step(self, report: StepReport) -> None:
        self._change(step=report.step)

    def checkpoint(self, step: int, seconds: float) -> None:
        self._change(checkpoint_step=step)
        self._news.set()

    def judged(self, report: JudgementReport) -> None:
        """Figures are in the checkpoints and in the manifest."""

    def spent(self, activity: Activity, seconds: float) -> None:
        """Shares of the time are in the report."""

    def work(self, done: int, total: int, what: str) -> None:
        """The stage says enough."""

    def message(self, text: str) -> None:
        """Messages go to the log."""

    def _change(self, **values: object) -> None:
        with self._lock:
            if self._record.ended is None:
                self._record = self._record.model_copy(update=values)

    def _keep(self) -> None:
        closed = False
        while not closed:
            self._news.wait(BEAT_SECONDS)
            self._news.clear()
            closed = self._closed  # before the writing, so that the last word is written after it was said
            try:
                self.beat()
            except (RunError, OSError) as error:
                log.warning("the record of this attempt was not stored: %s", error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
