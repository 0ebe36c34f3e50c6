"""A store that is away for a moment ends nothing: what may pass is tried again for a minute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import stamina
from finetune_api import ExitCode
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from finetune_trainer.errors import RunError

log = logging.getLogger("finetune")
T = TypeVar("T")

PATIENCE_SECONDS = 60.0
"""A retry of the whole pod costs more: another start, and one of the retries that the user allows."""


class Life:
    """When something new last came of a call that is repeated."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = time.monotonic()
        self._done = self._most = 0

    def again(self) -> None:
        """The call begins anew, and its transfer at the first byte."""
        with self._lock:
            self._done = 0

    def moved(self, count: int) -> None:
        """So many bytes more were transferred (fewer, if negative). New is what no earlier repetition came to: a
        server that fails at the end of each repetition shows no life. May be called from several threads."""
        with self._lock:
            self._done += count
            if self._done > self._most:
                self._most, self._seen = self._done, time.monotonic()

    @property
    def seconds_ago(self) -> float:
        return time.monotonic() - self._seen


def patiently(call: Callable[[Life], T]) -> T:
    """`call(life)`, again and again while it raises what may pass, until there was no sign of life for a minute.

    `call` must do no harm when it is repeated. It tells `life.moved()` of each part of a large file: a transfer that
    takes an hour meets the same patience at its end as at its beginning.

    Raises:
        RunError: as `call` does; ConfigurationError and DataError at once, for they do not pass.
    """
    life = Life()

    def may_pass(error: Exception) -> bool:
        passing = isinstance(error, RunError) and error.exit_code == ExitCode.ERROR
        return passing and life.seconds_ago < PATIENCE_SECONDS

    for attempt in stamina.retry_context(
        on=may_pass, attempts=None, timeout=None, wait_initial=1, wait_max=5, wait_jitter=1
    ):
        with attempt:
            life.again()
            return call(life)
    raise AssertionError("the last attempt returns or raises")


def _tell(details: RetryDetails) -> None:
    log.warning("%s; trying again in %.0f s", details.caused_by, details.wait_for)


# in words for people; stamina's own line names the place in the code
set_on_retry_hooks([_tell])
