"""The last events of a schedule, to be read when it failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from support.memory_api import Write

KEPT = 120


class Trace:
    """Remembers cheaply, and makes words only when asked."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` in seconds since the schedule began."""
        self._clock = clock
        self._lines: deque[tuple[float, str, str, str, str]] = deque(maxlen=KEPT)

    def add(self, who: str, what: str, about: str, detail: str) -> None:
        self._lines.append((self._clock(), who, what, about, detail))

    def write(self, write: Write) -> None:
        """A change of an object, as it took effect."""
        meta = write.new["metadata"]
        status, spec = write.new.get("status") or {}, write.new.get("spec") or {}
        detail = str(status.get("phase") or "")
        if write.resource.kind == "Job":
            detail = ",".join(c["type"] for c in status.get("conditions") or [] if c["status"] == "True")
            detail += " suspend" if spec.get("suspend") else ""
        if write.resource.kind == "Event":
            detail = f"{write.new['reason']}: {write.new.get('note', '')}"
        if meta.get("deletionTimestamp"):
            detail += " deleting"
        name = f"{meta['name']} v{meta['resourceVersion']} {meta['uid'][:8]}"
        self.add(write.who, f"* {write.kind}", f"{write.resource.kind} {name}", detail)

    def text(self) -> str:
        """One event a line: time, author, what, about what."""
        lines = (f"{at:9.2f}  {who:18}{what:14}{about}  {detail}" for at, who, what, about, detail in self._lines)
        return "\n".join(line.rstrip() for line in lines)
