"""The garbage collector: what belongs to nobody goes, and what waits for its dependents goes after them.

https://kubernetes.io/docs/concepts/architecture/garbage-collection/
"""

from __future__ import annotations

from finetune_operator.resources import CONFIGMAPS, FINETUNEJOBS, JOBS, PODS, SERVICES
from support.memory_api import FOREGROUND, Body, MemoryApi, owner_uid, uid_of

WHO = "garbage-collector"
OWNERS = (FINETUNEJOBS, JOBS)
DEPENDENTS = (JOBS, CONFIGMAPS, SERVICES, PODS)


def collect(api: MemoryApi) -> None:
    """One round over everything."""
    known = {uid_of(body): body for kind in OWNERS for body in api.find(kind)}
    for kind in DEPENDENTS:
        for body in api.find(kind):
            owner = owner_uid(body)
            if not owner or body["metadata"].get("deletionTimestamp"):
                continue
            if owner not in known or _in_foreground(known[owner]):
                api.delete(WHO, kind, body["metadata"]["namespace"], body["metadata"]["name"], uid=uid_of(body))
    for kind in OWNERS:
        for body in api.find(kind):
            if _in_foreground(body) and not _dependents(api, body):
                kept = [name for name in body["metadata"]["finalizers"] if name != FOREGROUND]
                api.update(WHO, kind, body, metadata={**body["metadata"], "finalizers": kept})


def _in_foreground(body: Body) -> bool:
    return FOREGROUND in (body["metadata"].get("finalizers") or [])


def _dependents(api: MemoryApi, owner: Body) -> list[Body]:
    uid = uid_of(owner)
    return [body for kind in DEPENDENTS for body in api.find(kind) if owner_uid(body) == uid]
