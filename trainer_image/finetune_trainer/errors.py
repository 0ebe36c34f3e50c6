"""How a run ends when it does not end well. Each error knows its exit code; its message is for people.

A message names the field, the value and the remedy, and never holds a secret: it is logged, and it reaches the
status of the FineTuneJob through the termination message.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from finetune_api import ExitCode

FULL = (errno.ENOSPC, errno.EDQUOT)


class RunError(Exception):
    """A failure that may pass, such as a store that does not answer: the run is tried again (exit 1)."""

    exit_code: ClassVar[ExitCode] = ExitCode.ERROR


class DataError(RunError):
    """The user's pictures or base model cannot be used (exit 65). Not retried."""

    exit_code = ExitCode.BAD_DATA


class ConfigurationError(RunError):
    """The user's configuration cannot work: credentials, bucket, values (exit 78). Not retried."""

    exit_code = ExitCode.BAD_CONFIGURATION


class Interrupted(RunError):
    """Stopped by a signal after the state was saved as far as possible (exit 75). Goes on from its checkpoint."""

    exit_code = ExitCode.INTERRUPTED


class PeerLost(RunError):
    """Another process of the group is gone (exit 76). The group goes on from its checkpoint."""

    exit_code = ExitCode.PEER_LOST


def first_line(error: BaseException) -> str:
    """What a library says, for a message of ours: its first line, at most 300 characters; else the error's name."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


@contextmanager
def unreadable(what: str, remedy: str) -> Iterator[None]:
    """Turns whatever a library raises about a broken file into a DataError, for libraries that raise whatever they met.

    Args:
        what: field and file, as it begins the message.
        remedy: as it ends the message.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        raise DataError(f"{what} cannot be read: {first_line(error)}; {remedy}") from error


@contextmanager
def room_on_disk(*folders: Path) -> Iterator[None]:
    """Turns whatever a library raises about a full disk into a RunError: somebody may make room, and the run goes on.

    Args:
        folders: what is written to, for people.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if not _is_full_disk(error):
            raise
        places = " or ".join(dict.fromkeys(map(str, folders)))
        raise RunError(
            f"no space is left on the disk of {places} ({first_line(error)}); make room there; the same run goes on "
            "from its last checkpoint"
        ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    """Also where another error came of it; safetensors raises an error of its own, which has the number as a word."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in FULL
        if full or any(f"(os error {number})" in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
