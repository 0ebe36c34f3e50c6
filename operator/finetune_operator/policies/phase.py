"""status.phase, derived from the conditions: a summary for people."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_api.status import Condition, Phase

from finetune_operator.policies.queueing import HELD_BACK

STARTING = {"Starting", "Restarting", "Interrupted"}


def phase_of(conditions: Mapping[str, Condition], started: bool) -> Phase:
    """`conditions` by type; `started`: a Job was made."""

    def true(name: str) -> bool:
        return name in conditions and conditions[name].status == "True"

    if true("Failed"):
        return "Failed"
    if true("Succeeded"):
        return "Succeeded"
    if true("Suspended"):
        return "Suspended"
    ready = conditions.get("PodsReady")
    if true("Accepted") and ready is not None and ready.reason in HELD_BACK:
        return "Queued"
    if not true("Accepted") or not started:
        return "Pending"
    suspending = "Suspended" in conditions and conditions["Suspended"].reason == "Suspending"
    if true("PodsReady") or suspending:
        return "Running"
    return "Starting" if ready is not None and ready.reason in STARTING else "Pending"
