"""Whether the operator works, not merely whether it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass

from finetune_operator.hearing import Hearing
from finetune_operator.leadership import Leadership
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile.controller import Controller
from finetune_operator.store import Store

FROZEN_SECONDS = 180.0
"""Longer than the longest pass, which is broken off: an API server that is slow or away freezes no worker."""


@dataclass(frozen=True)
class Health:
    """Answers of /healthz and /readyz."""

    store: Store
    queue: WorkQueue
    controller: Controller
    hearing: Hearing
    patience: float
    """Seconds for which a watch that has missed something may go on saying nothing."""
    leadership: Leadership

    def problems(self) -> list[str]:
        """What a restart would mend; empty when all is well. An API outage is not among it."""
        found = [
            f"the watch of {resource.plural} is deaf: the audit found changes that it did not bring"
            for resource in self.hearing.deaf(self.patience)
        ]
        if stuck := self._stuck():
            found.append(stuck)
        if not self.leadership.well():
            found.append("the thread that renews the Lease has ended")
        return found

    def _stuck(self) -> str:
        now = time.monotonic()
        key = min(self.controller.busy, key=lambda key: self.controller.busy[key], default=None)
        if key is not None and now - self.controller.busy[key] > FROZEN_SECONDS:
            return f"a worker has been busy with {key} for more than {FROZEN_SECONDS:.0f} s"
        since = self.leadership.since()
        if since is not None and len(self.queue) and now - max(since, self.controller.finished) > FROZEN_SECONDS:
            return f"{len(self.queue)} jobs wait, and no worker has ended a pass for {FROZEN_SECONDS:.0f} s"
        return ""

    def ready(self) -> bool:
        """Whether everything was listed once; a standby is ready too."""
        return self.store.primed
