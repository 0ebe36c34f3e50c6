"""How a trainer ends. The Job's podFailurePolicy, the operator and the trainer read the same table."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `finetune run` (65, 75 and 78 as in sysexits.h)."""

    DONE = 0
    """The manifest is published."""
    ERROR = 1
    """Something failed that may pass: retried."""
    BAD_DATA = 65
    """The user's pictures or base model cannot be used: not retried."""
    INTERRUPTED = 75
    """Stopped by SIGTERM; goes on from its checkpoint."""
    PEER_LOST = 76
    """Another process of the group was lost, or one gave up its plan; all go on from the checkpoint."""
    BAD_CONFIGURATION = 78
    """The user's configuration cannot work (credentials, bucket, values): not retried."""

    @property
    def counts(self) -> bool:
        """Whether it uses up one of the retries."""
        return self is ExitCode.ERROR

    @property
    def is_users(self) -> bool:
        """Whether only the user can mend it."""
        return self in (ExitCode.BAD_DATA, ExitCode.BAD_CONFIGURATION)
