"""Files that are there whole or not at all, also when two pods share a cache."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".tmp"
"""How the names of files end that are not whole yet."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, then puts it in its place. The last of several writers wins."""
    half_written = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        write(half_written)
        half_written.replace(path)
    finally:
        half_written.unlink(missing_ok=True)
