"""When a job is active: from when its pods are asked for until it ends, without the time it was suspended or queued.
runPolicy.activeDeadlineSeconds counts this time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_operator.projections import ChildState
from finetune_operator.times import parse


@dataclass(frozen=True)
class Activity:
    """`seconds` of activity that have ended, and since when the present one lasts (None: it rests)."""

    seconds: int = 0
    since: datetime | None = None

    def total(self, now: datetime) -> float:
        """Seconds of activity up to `now`."""
        return self.seconds + (max(0.0, (now - self.since).total_seconds()) if self.since is not None else 0.0)

    def goes_on(self, since: datetime) -> Activity:
        """Active, since `since` if it rested before."""
        return self if self.since is not None else Activity(self.seconds, since)

    def rests(self, now: datetime) -> Activity:
        """At rest; what went before is counted."""
        return Activity(int(self.total(now)), None)


def began(child: ChildState, now: datetime) -> datetime:
    """Since when pods of the Job are asked for: its admission if it was queued, else its creation."""
    since = child.started_at if child.queue else child.started_at or child.created
    return parse(since) or now


def effective_deadline(asked: int | None, longest: int | None) -> int | None:
    """The job's own deadline, never beyond the profile's; the profile's where it names none."""
    limits = [seconds for seconds in (asked, longest) if seconds is not None]
    return min(limits) if limits else None
