"""Listens to what the operator logs as errors: the workers survive every exception, so a mistake would pass unseen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

import aiohttp
from finetune_operator.client import ApiError, NotLeadingError
from finetune_operator.reconcile import controller

OPERATOR = logging.getLogger("finetune_operator")
EXPECTED = (ApiError, NotLeadingError, TimeoutError, aiohttp.ClientError, RuntimeError)
"""RuntimeError: the job changed several times while it was looked at."""


class Watchman(logging.Handler):
    """Calls `fail` for an exception that no fault explains; silences all else while it listens."""

    def __init__(self, fail: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._fail = fail

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, EXPECTED):
            words = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
            self._fail(f"the operator made a mistake: {error!r}\n{words}")

    def __enter__(self) -> Self:
        self._before = OPERATOR.level, OPERATOR.propagate
        OPERATOR.setLevel(logging.CRITICAL)
        controller.logger.setLevel(logging.ERROR)
        OPERATOR.propagate = False
        controller.logger.addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        controller.logger.removeHandler(self)
        controller.logger.setLevel(logging.NOTSET)
        OPERATOR.setLevel(self._before[0])
        OPERATOR.propagate = self._before[1]
