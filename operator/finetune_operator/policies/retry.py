"""runPolicy.retries: how many failures are borne, over all Jobs that a FineTuneJob ever had."""

from __future__ import annotations

from finetune_operator.projections import ChildState

DEFAULT_RETRIES = 3


def used(child: ChildState | None, recorded: int | None) -> int:
    """Retries used up: what the Job counts on top of its forerunners, or what was recorded before it was gone."""
    if child is None:
        return recorded or 0
    return max(child.retries_before + child.failed, recorded or 0)


def left(retries: int, already_used: int) -> int:
    """backoffLimit of the next Job."""
    return max(0, retries - already_used)


def wanted_backoff_limit(retries: int, child: ChildState) -> int:
    """backoffLimit that an existing Job should have after spec.runPolicy.retries was edited."""
    return left(retries, child.retries_before)
