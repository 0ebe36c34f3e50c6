"""How a run ends when it does not end well. Each error knows its exit code; its message is for people.

A message names the field, the value and the remedy, and never holds a secret: it is logged, and it reaches the
status of the FineTuneJob through the termination message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from finetune_api import ExitCode


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
