"""An API server in memory: what the operator relies on, and nothing that a real one would not do.

resourceVersions come from one counter over all kinds, as etcd's do; UIDs are never used twice; writes are checked
against resourceVersion and UID; finalizers, grace periods and foreground deletion keep an object; a write that changes
nothing makes no new version. What is stored is never changed in place, so readers get it without a copy.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.client import ConflictError, NotFoundError
from finetune_operator.resources import PODS, Resource
from finetune_operator.times import parse, show

Body = dict[str, Any]
Where = tuple[str, str]
"""(namespace, name); the namespace is empty for what has none."""

FOREGROUND = "foregroundDeletion"


@dataclass(frozen=True, slots=True)
class Write:
    """One change of one object. `new` of a deletion is the last state, with the version of the deletion."""

    who: str
    resource: Resource
    kind: str
    """ADDED, MODIFIED or DELETED."""
    old: Body | None
    new: Body


class MemoryApi:
    """The objects, and what may be done to them. `who` is the author of a write, for those who watch."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.objects: dict[Resource, dict[Where, Body]] = defaultdict(dict)
        self.on_write: list[Callable[[Write], None]] = []
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    def get(self, resource: Resource, namespace: str, name: str) -> Body | None:
        return self.objects[resource].get((namespace, name))

    def find(self, resource: Resource, namespace: str = "", labels: str = "", fields: str = "") -> list[Body]:
        """All objects of a kind; `namespace` empty means every one."""
        return [
            body
            for (where, _), body in self.objects[resource].items()
            if namespace in ("", where) and selected(body, labels, fields)
        ]

    def create(self, who: str, resource: Resource, namespace: str, body: Body) -> Body:
        """Raises ConflictError (AlreadyExists)."""
        name = body["metadata"]["name"]
        if (namespace, name) in self.objects[resource]:
            raise ConflictError(409, "AlreadyExists", f'{resource.plural} "{name}" already exists')
        made: Body = json.loads(json.dumps(body))  # as over the wire: nothing is shared with the author
        number = next(self._uids)
        made["metadata"] |= {
            "uid": f"{number:08x}-0000-4000-8000-{number:012x}",
            "generation": 1,
            "creationTimestamp": show(self.now()),
            "resourceVersion": str(next(self._versions)),
        }
        if resource.namespaced:
            made["metadata"]["namespace"] = namespace
        self.objects[resource][namespace, name] = made
        self._tell(Write(who, resource, "ADDED", None, made))
        return made

    def update(self, who: str, resource: Resource, known: Body, **parts: Any) -> Body:
        """Puts `parts` (metadata, spec, status) in place of those of the object that `known` is a state of."""
        meta = known["metadata"]
        where = (meta.get("namespace", ""), meta["name"])
        old = self.objects[resource].get(where)
        if old is None or old["metadata"]["uid"] != meta["uid"]:
            raise NotFoundError(404, "NotFound", f'{resource.plural} "{meta["name"]}" not found')
        if all(old.get(part) == value for part, value in parts.items()):
            return old
        new = {**old, **parts}
        generation = old["metadata"]["generation"] + (parts.get("spec", old.get("spec")) != old.get("spec"))
        new["metadata"] = {
            **new["metadata"],
            "generation": generation,
            "resourceVersion": str(next(self._versions)),
        }
        self.objects[resource][where] = new
        self._tell(Write(who, resource, "MODIFIED", old, new))
        return self._maybe_remove(who, resource, new)

    def apply_status(self, who: str, resource: Resource, namespace: str, name: str, body: Body) -> Body:
        """Server-side apply of the whole status by its only author. Raises NotFoundError, ConflictError."""
        known = self._existing(resource, namespace, name)
        _check_preconditions(body["metadata"], known)
        return self.update(who, resource, known, status=json.loads(json.dumps(body["status"])))

    def merge_patch(self, who: str, resource: Resource, namespace: str, name: str, body: Body) -> Body:
        """RFC 7396. Raises NotFoundError, ConflictError."""
        known = self._existing(resource, namespace, name)
        _check_preconditions(body.get("metadata") or {}, known)
        merged = _merged(known, json.loads(json.dumps(body)))
        parts = {part: merged[part] for part in ("metadata", "spec", "status") if part in body and part in merged}
        if parts.get("metadata") == known["metadata"]:
            del parts["metadata"]
        return self.update(who, resource, known, **parts)

    def patch_status(self, who: str, resource: Resource, namespace: str, name: str, body: Body) -> Body:
        """Strategic merge of a built-in kind's status: conditions are merged by type."""
        known = self._existing(resource, namespace, name)
        _check_preconditions(body.get("metadata") or {}, known)
        given = json.loads(json.dumps(body["status"]))
        old = known.get("status") or {}
        by_type = {c["type"]: c for c in [*(old.get("conditions") or []), *(given.get("conditions") or [])]}
        status = {**_merged(old, given), "conditions": list(by_type.values())}
        return self.update(who, resource, known, status=status)

    def delete(
        self,
        who: str,
        resource: Resource,
        namespace: str,
        name: str,
        uid: str | None = None,
        propagation: str = "Background",
        grace: int | None = None,
    ) -> None:
        """Raises NotFoundError, or ConflictError where `uid` is not the object's. `grace` in seconds, for pods."""
        known = self._existing(resource, namespace, name)
        meta = known["metadata"]
        if uid is not None and meta["uid"] != uid:
            raise ConflictError(409, "Conflict", f"the UID in the precondition is {uid}, the object's {meta['uid']}")
        finalizers = list(meta.get("finalizers") or [])
        if propagation == "Foreground" and FOREGROUND not in finalizers:
            finalizers.append(FOREGROUND)
        seconds = _grace(resource, known, grace)
        if seconds == 0 and not finalizers:
            self._remove(who, resource, known)
            return
        if meta.get("deletionTimestamp") and seconds >= (meta.get("deletionGracePeriodSeconds") or 0):
            return
        marked = {
            **meta,
            "finalizers": finalizers,
            "deletionTimestamp": show(self.now() + timedelta(seconds=seconds)),
            "deletionGracePeriodSeconds": seconds,
        }
        self.update(who, resource, known, metadata=marked)

    def _maybe_remove(self, who: str, resource: Resource, body: Body) -> Body:
        """An object that is being deleted goes when nothing holds it any more."""
        meta = body["metadata"]
        held = meta.get("finalizers") or meta.get("deletionGracePeriodSeconds")
        if meta.get("deletionTimestamp") and not held:
            self._remove(who, resource, body)
        return body

    def _remove(self, who: str, resource: Resource, known: Body) -> None:
        meta = known["metadata"]
        del self.objects[resource][meta.get("namespace", ""), meta["name"]]
        gone = {**known, "metadata": {**meta, "resourceVersion": str(next(self._versions))}}
        self._tell(Write(who, resource, "DELETED", known, gone))

    def _existing(self, resource: Resource, namespace: str, name: str) -> Body:
        known = self.objects[resource].get((namespace, name))
        if known is None:
            raise NotFoundError(404, "NotFound", f'{resource.plural} "{name}" not found')
        return known

    def _tell(self, write: Write) -> None:
        for watcher in self.on_write:
            watcher(write)


def uid_of(body: Body) -> str:
    return str(body["metadata"]["uid"])


def owner_uid(body: Body) -> str:
    """UID of the owner that controls the object; empty for none."""
    owners = body["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def selected(body: Body, labels: str, fields: str) -> bool:
    """Whether label selector (`a=b`, `a`, `!a`) and field selector (`a.b=c`; absent is empty) take the object."""
    mine = body["metadata"].get("labels") or {}
    for part in labels.split(",") if labels else ():
        name, equals, value = part.partition("=")
        if (name[1:] in mine) if name.startswith("!") else (mine.get(name) != value if equals else name not in mine):
            return False
    for part in fields.split(",") if fields else ():
        path, _, value = part.partition("=")
        found: Any = body
        for step in path.split("."):
            found = (found or {}).get(step)
        if str(found or "") != value:
            return False
    return True


def _grace(resource: Resource, known: Body, asked: int | None) -> int:
    """Only a pod that a node has may take its time."""
    if resource is not PODS or not known["spec"].get("nodeName"):
        return 0
    if known.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    return int(known["spec"].get("terminationGracePeriodSeconds", 30)) if asked is None else asked


def _check_preconditions(asked: Body, known: Body) -> None:
    meta = known["metadata"]
    for field in ("uid", "resourceVersion"):
        if asked.get(field) not in (None, meta[field]):
            raise ConflictError(409, "Conflict", f"metadata.{field} is {asked[field]}, the object's {meta[field]}")


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    result = dict(old)
    for key, value in new.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(old.get(key), value)
    return result


def seconds_since(text: str | None, now: datetime) -> float:
    """Seconds from a Kubernetes time to `now`; 0 for none."""
    moment = parse(text)
    return (now - moment).total_seconds() if moment is not None else 0.0
