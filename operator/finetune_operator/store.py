"""What the operator knows: small projections of every object it watches.

Not kopf's index: after a broken watch kopf lists anew and reports nothing for what vanished in between. Here the
audit removes it. An older state never replaces a newer one, in whatever order they arrive.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

from finetune_operator.policies.queueing import QueueNote
from finetune_operator.projections import ChildState, JobState, Key, PodState, ProfileState, Warned, gone


class Versioned(Protocol):
    """A projection."""

    @property
    def uid(self) -> str: ...

    @property
    def version(self) -> int: ...


K = TypeVar("K")
V = TypeVar("V", bound=Versioned)


def _newer(old: V | None, new: V) -> bool:
    """Versions of one kind are comparable across objects, so this holds for a successor of the same name too."""
    return old is None or new.version >= old.version


BURIED = 10_000
"""How many objects that are gone are remembered as such."""


class Store:
    """Not thread-safe: all calls come from the operator's event loop."""

    def __init__(self) -> None:
        self._jobs: dict[Key, JobState] = {}
        self._profiles: dict[str, ProfileState] = {}
        self._children: dict[Key, ChildState] = {}
        self._pods: dict[Key, dict[str, PodState]] = defaultdict(dict)
        self._warnings: dict[Key, Warned] = {}
        self._notes: dict[str, QueueNote] = {}
        self._buried: OrderedDict[str, None] = OrderedDict()
        self.primed = False
        """Whether everything was listed once: only then does absence mean anything."""

    @property
    def jobs(self) -> Mapping[Key, JobState]:
        return self._jobs

    @property
    def profiles(self) -> Mapping[str, ProfileState]:
        return self._profiles

    @property
    def children(self) -> Mapping[Key, ChildState]:
        return self._children

    def pods_of(self, key: Key) -> tuple[PodState, ...]:
        """Pods of a FineTuneJob, oldest first, those included that are gone but not yet in its status."""
        return tuple(sorted(self._pods.get(key, {}).values(), key=lambda pod: (pod.created, pod.uid)))

    def pods(self) -> Iterator[PodState]:
        """Pods of all FineTuneJobs that still exist."""
        return (pod for pods in self._pods.values() for pod in pods.values() if not pod.gone)

    def warning_of(self, key: Key) -> Warned | None:
        """The newest Warning Event of a Job."""
        return self._warnings.get(key)

    def note_of(self, child_uid: str) -> QueueNote | None:
        """What Kueue says of a Job."""
        return self._notes.get(child_uid)

    def put_notes(self, notes: dict[str, QueueNote]) -> set[str]:
        """Replaces what Kueue says of all Jobs, by UID. Returns those of which it says something else now."""
        changed = {uid for uid in notes.keys() | self._notes.keys() if notes.get(uid) != self._notes.get(uid)}
        self._notes = notes
        return changed

    def put_job(self, job: JobState) -> None:
        if _newer(self._jobs.get(job.key), job):
            self._jobs[job.key] = job

    def replace_job(self, job: JobState) -> None:
        """As put_job, for the answer to an own write: a job deleted meanwhile does not come back."""
        known = self._jobs.get(job.key)
        if known is not None and known.uid == job.uid:
            self.put_job(job)

    def drop_job(self, key: Key, uid: str) -> None:
        known = self._jobs.get(key)
        if known is not None and known.uid == uid:
            del self._jobs[key]
            self._bury(uid)
            self._pods.pop(key, None)
            self._warnings.pop(key, None)

    def put_profile(self, profile: ProfileState) -> None:
        if _newer(self._profiles.get(profile.name), profile):
            self._profiles[profile.name] = profile

    def drop_profile(self, name: str) -> None:
        self._profiles.pop(name, None)

    def put_child(self, child: ChildState) -> None:
        if _newer(self._children.get(child.key), child):
            self._children[child.key] = child

    def drop_child(self, key: Key, uid: str) -> None:
        known = self._children.get(key)
        if known is not None and known.uid == uid:
            del self._children[key]
            self._bury(uid)
            self._warnings.pop(key, None)

    def put_pod(self, pod: PodState) -> None:
        known = self._pods[pod.job].get(pod.uid)
        if _newer(known, pod) and not (known is not None and known.gone):
            self._pods[pod.job][pod.uid] = pod

    def drop_pod(self, pod: PodState) -> None:
        """Keeps the pod as gone, so that its end can still be reported, if its FineTuneJob is there."""
        self._bury(pod.uid)
        if pod.job in self._jobs:
            self._pods[pod.job][pod.uid] = gone(pod)
        else:
            self._pods.get(pod.job, {}).pop(pod.uid, None)

    def forget_gone(self, key: Key, uids: set[str]) -> None:
        """The ends of these pods now stand in the status."""
        pods = self._pods.get(key, {})
        for uid in uids:
            if uid in pods and pods[uid].gone:
                del pods[uid]

    def buried(self, uid: str) -> bool:
        """Whether the object is known to be gone: a watch that is late may still tell how it was before."""
        return uid in self._buried

    def _bury(self, uid: str) -> None:
        self._buried[uid] = None
        while len(self._buried) > BURIED:
            self._buried.popitem(last=False)

    def put_warning(self, warning: Warned) -> bool:
        """Remembers a Warning Event of a Job that is ours; False for any other."""
        child = self._children.get(warning.job)
        if child is None or child.uid != warning.job_uid:
            return False
        known = self._warnings.get(warning.job)
        if known is None or known.job_uid != warning.job_uid or warning.at >= known.at:
            self._warnings[warning.job] = warning
        return True
