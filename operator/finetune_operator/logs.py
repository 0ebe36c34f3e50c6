"""Log lines: one JSON object each, or plain text for reading."""

from __future__ import annotations

import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

QUIET = ("kopf", "aiohttp.access", "kubernetes", "urllib3", "asyncio")
"""Libraries that report every request at INFO."""


def configure(log_format: Literal["json", "text"]) -> None:
    """Sends all logging to stderr in the given form."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        fields = "%(asctime)s %(levelname)s %(name)s %(message)s"
        renames = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter(fields, rename_fields=renames))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # it warns that it handles no signals: we do
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
