"""Whether the operator works, not merely whether it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass

from finetune_operator.audit import Auditor
from finetune_operator.reconcile.controller import Controller
from finetune_operator.store import Store

FROZEN_SECONDS = 180.0
"""Longer than any single reconcile with all its retries can take."""
DEAF_AUDITS = 3


@dataclass(frozen=True)
class Health:
    """Answers of /healthz and /readyz."""

    store: Store
    controller: Controller
    auditor: Auditor

    def problems(self) -> list[str]:
        """What a restart would mend; empty when all is well. An API outage is not among it."""
        found = []
        oldest = min(self.controller.busy.values(), default=None)
        if oldest is not None and time.monotonic() - oldest > FROZEN_SECONDS:
            stuck = min(self.controller.busy, key=lambda key: self.controller.busy[key])
            found.append(f"a worker has been busy with {stuck} for more than {FROZEN_SECONDS:.0f} s")
        if self.auditor.failures >= DEAF_AUDITS:
            found.append(f"{self.auditor.failures} audits in a row found what the watches had missed")
        return found

    def ready(self) -> bool:
        """Whether everything was listed once; a standby is ready too."""
        return self.store.primed
