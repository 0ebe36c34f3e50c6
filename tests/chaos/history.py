"""What may become of a status: nothing known is lost, nothing counted is uncounted, an end is an end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from finetune_operator.policies.attempts import INTERRUPTIONS, KEPT
from finetune_operator.policies.readiness import BLOCKED
from finetune_operator.times import parse
from support.memory_api import Body

RECURRING = BLOCKED
"""Reasons of Events that may be told once for each Job."""
SET_ONCE = ("startTime", "completionTime", "method")
NEVER_LESS = ("retries", "interruptions", "lostSteps", "activeSeconds", "observedGeneration")
PROVISIONAL = ("Lost", "Deleted")
"""Ends of an attempt that a pod's own last word may replace."""


def ended(status: Body) -> str:
    """Reason of the end; empty for a job that goes on."""
    for condition in status.get("conditions") or []:
        if condition["type"] in ("Succeeded", "Failed") and condition["status"] == "True":
            return str(condition["reason"])
    return ""


def interrupted(status: Body) -> set[str]:
    """UIDs of the pods whose attempts were cut short."""
    return {a["podUid"] for a in status.get("attempts") or [] if a.get("reason") in INTERRUPTIONS}


def steps_back(before: Body, after: Body) -> Iterator[str]:
    """What is wrong about the way from one status to the next."""
    if ended(before):
        yield f"it had ended with {ended(before)}, and was written again"
    for field in SET_ONCE:
        if before.get(field) is not None and before[field] != after.get(field):
            yield f"{field} was {before[field]} and became {after.get(field)}"
    for field in NEVER_LESS:
        if (after.get(field) or 0) < (before.get(field) or 0):
            yield f"{field} was {before[field]} and became {after.get(field)}"
    for field in ("runSha256", "profileSha256", "runConfigMap"):
        was = (before.get("resolved") or {}).get(field)
        now = (after.get("resolved") or {}).get(field)
        if was is not None and was != now:
            yield f"resolved.{field} was {was} and became {now}"
    yield from _conditions(before, after)
    yield from _attempts(before, after)


def _conditions(before: Body, after: Body) -> Iterator[str]:
    old = {c["type"]: c for c in before.get("conditions") or []}
    new = {c["type"]: c for c in after.get("conditions") or []}
    for kind, was in old.items():
        now = new.get(kind)
        if now is None:
            yield f"the condition {kind} vanished"
        elif now["status"] == was["status"] and now["lastTransitionTime"] != was["lastTransitionTime"]:
            yield f"lastTransitionTime of {kind} moved, though it stayed {now['status']}"


def _may_become(was: str | None, now: str | None) -> bool:
    return was is None or was == now or (was in PROVISIONAL and now is not None)


def _attempts(before: Body, after: Body) -> Iterator[str]:
    old, new = before.get("attempts") or [], after.get("attempts") or []
    known = {attempt["podUid"]: attempt for attempt in new}
    if len(known) != len(new) or len(new) > KEPT:
        yield f"{len(new)} attempts of {len(known)} pods"
    for attempt in old:
        now = known.get(attempt["podUid"])
        if now is None:
            oldest = min((parse(a["startedAt"]) for a in new), default=None)
            began = parse(attempt["startedAt"])
            if len(new) < KEPT or oldest is None or began is None or began > oldest + timedelta(seconds=1):
                yield f"the attempt of pod {attempt['podName']} vanished"
        elif not _may_become(attempt.get("reason"), now.get("reason")):
            yield f"the attempt of {attempt['podName']} had ended with {attempt['reason']}, then {now.get('reason')}"
        elif (now.get("step") or 0) < (attempt.get("step") or 0):
            yield f"the attempt of {attempt['podName']} had reached step {attempt['step']}, then {now.get('step')}"
