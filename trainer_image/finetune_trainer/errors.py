"""How a run ends when it does not end well. Each error knows its exit code; its message is for people.

A message names the field, the value and the remedy, and never holds a secret: it is logged, and it reaches the
status of the FineTuneJob through the termination message.
"""

from __future__ import annotations

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
