"""The last answer of every trainer that was asked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.progress import Progress

from finetune_operator.progress.reading import Reading

STALE_SECONDS = 30.0


@dataclass
class _Entry:
    progress: Progress | None = None
    at: datetime | None = None
    asked_since: datetime | None = None
    """Since when questions have gone without an answer."""


class ProgressBoard:
    """By UID of the FineTuneJob. Not thread-safe."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def answered(self, job_uid: str, progress: Progress, now: datetime) -> bool:
        """Records an answer. Returns whether it says anything new."""
        entry = self._entries.setdefault(job_uid, _Entry())
        news = entry.progress != progress or entry.asked_since is not None
        entry.progress, entry.at, entry.asked_since = progress, now, None
        return news

    def silent(self, job_uid: str, now: datetime) -> bool:
        """Records that no answer came. Returns whether the last one has just become stale."""
        entry = self._entries.setdefault(job_uid, _Entry())
        if entry.asked_since is None:
            entry.asked_since = now
        return _stale(entry, now)

    def reading(self, job_uid: str, now: datetime) -> Reading | None:
        """What is known of the job's progress; None if its trainer was never asked."""
        entry = self._entries.get(job_uid)
        return Reading(entry.progress, entry.at, _stale(entry, now)) if entry is not None else None

    def keep_only(self, job_uids: set[str]) -> None:
        """Forgets all other jobs."""
        for uid in self._entries.keys() - job_uids:
            del self._entries[uid]


def _stale(entry: _Entry, now: datetime) -> bool:
    return entry.asked_since is not None and (now - entry.asked_since).total_seconds() >= STALE_SECONDS
