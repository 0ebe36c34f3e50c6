"""Points in time as Kubernetes writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def parse(text: str | None) -> datetime | None:
    """RFC 3339 → aware datetime; None for nothing."""
    return datetime.fromisoformat(text) if text else None


def show(moment: datetime) -> str:
    """Aware datetime → RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def show_micro(moment: datetime) -> str:
    """Aware datetime → RFC 3339 in UTC, to the microsecond (MicroTime)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def utcnow() -> datetime:
    """Now, aware."""
    return datetime.now(UTC)
