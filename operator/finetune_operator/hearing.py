"""Whether the watches bring what happens. A stream that is silent may be quiet or dead; the audit tells them apart."""

from __future__ import annotations

import time
from collections.abc import Callable

from finetune_operator.resources import Resource


class Hearing:
    """Per kind: when its watch last said anything, and since when the audit knows of what it did not say."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in seconds."""
        self._clock = clock
        self._heard: dict[Resource, float] = {}
        self._missed: dict[Resource, float] = {}

    def now(self) -> float:
        return self._clock()

    def heard(self, resource: Resource) -> None:
        """The watch has brought something: it lives."""
        self._heard[resource] = self._clock()
        self._missed.pop(resource, None)

    def missed(self, resource: Resource, since: float) -> None:
        """An audit that began at `since` has found a change that the watch had not brought, and the watch has been
        silent since then. A watch that has spoken meanwhile was merely late."""
        if self._heard.get(resource, 0.0) < since:
            self._missed.setdefault(resource, self._clock())

    def deaf(self, patience: float) -> list[Resource]:
        """Kinds whose watch has been silent for more than `patience` seconds after it had missed something."""
        now = self._clock()
        return [resource for resource, at in self._missed.items() if now - at > patience]
