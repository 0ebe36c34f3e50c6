"""What people do with their jobs, and administrators with profiles and namespaces. Every act is one write."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from finetune_operator.resources import CONFIGMAPS, FINETUNEJOBS, FINETUNEPROFILES, JOBS, PODS, SERVICES
from support.memory_api import Body, MemoryApi, owner_uid, uid_of
from support.observations import IMAGE, spec

WHO = "user"
NAMESPACE = "art"
NAMES = ("a", "b", "c", "d")
LONGEST = 900
PROFILES: dict[str, Body] = {
    "tiny": {"image": IMAGE, "isDefault": True},
    "gpu": {"image": IMAGE, "resources": {"limits": {"nvidia.com/gpu": "1"}}, "nodeLost": "Wait"},
    "short": {"image": IMAGE, "limits": {"maxActiveDeadlineSeconds": LONGEST}},
}
ACCEPTABLE = "s3://pictures/dog/"
UNACCEPTABLE = "file:///home/me/dog"
"""No operator carries out a job with pictures on somebody's own disk."""


class Users:
    """The schedule decides when; what, is drawn."""

    def __init__(self, api: MemoryApi, rng: random.Random) -> None:
        self._api = api
        self._rng = rng

    def begin(self) -> None:
        """Profiles and the first jobs. One profile is missing at first."""
        for name in ("tiny", self._rng.choice(("gpu", "short"))):
            self._api.create(WHO, FINETUNEPROFILES, "", {"metadata": {"name": name}, "spec": PROFILES[name]})
        for name in NAMES[: self._rng.randint(2, 4)]:
            self.submit(name)

    def jobs(self) -> list[Body]:
        return self._api.find(FINETUNEJOBS)

    def act(self) -> None:
        """One of the things that users do."""
        jobs = self.jobs()
        acts: list[tuple[int, Any]] = [(2, self._submit_missing), (1, self._edit_profile)]
        if jobs:
            job = self._rng.choice(jobs)
            acts += [
                (4, lambda: self.suspend(job, self._rng.random() < 0.6)),
                (2, lambda: self._edit_policy(job)),
                (2, lambda: self._delete(job)),
                (2, lambda: self._replace(job)),
                (1, lambda: self._annotate(job)),
            ]
        self._one_of(acts)

    def sabotage(self) -> None:
        """Somebody meddles with what is the operator's, or stands in its way."""
        kinds = ((2, JOBS), (2, PODS), (1, CONFIGMAPS), (1, SERVICES))
        acts: list[tuple[int, Any]] = [(weight, partial(self._remove, kind)) for weight, kind in kinds]
        self._one_of([*acts, (2, self._foreign), (1, self._usurp), (1, self._forge_snapshot)])

    def submit(self, name: str) -> None:
        rng = self._rng
        policy: Body = {"retries": rng.choice((0, 1, 3))}
        for field, values in (
            ("activeDeadlineSeconds", (None, None, None, 120, 900)),
            ("startDeadlineSeconds", (None, None, None, 60, 400)),
            ("ttlSecondsAfterFinished", (None, None, 0, 30, 600)),
            ("queueName", (None, None, "gpus")),
        ):
            value = rng.choice(values)
            if value is not None:
                policy[field] = value
        more: Body = {"dataset": {"uri": ACCEPTABLE if rng.random() < 0.95 else UNACCEPTABLE}}
        profile = rng.choice((None, None, "tiny", "gpu", "short"))
        if profile is not None:
            more["profileName"] = profile
        if rng.random() < 0.25:
            more["engine"] = {"nodes": 2}
        if rng.random() < 0.15:
            more["suspend"] = True
        body = {"metadata": {"name": name}, "spec": spec(policy, **more), "status": {}}
        self._api.create(WHO, FINETUNEJOBS, NAMESPACE, body)

    def suspend(self, job: Body, wanted: bool) -> None:
        self._api.update(WHO, FINETUNEJOBS, job, spec={**job["spec"], "suspend": wanted})

    def mend(self) -> None:
        """After the storm: every job may go on, every profile is there, nobody stands in the way."""
        for name, given in PROFILES.items():
            known = self._api.get(FINETUNEPROFILES, "", name)
            if known is None:
                self._api.create(WHO, FINETUNEPROFILES, "", {"metadata": {"name": name}, "spec": given})
        for job in self.jobs():
            policy = dict(job["spec"]["runPolicy"])
            if job["spec"].get("profileName") == "short" and policy.get("activeDeadlineSeconds", 0) > LONGEST:
                policy["activeDeadlineSeconds"] = LONGEST
            self._api.update(WHO, FINETUNEJOBS, job, spec={**job["spec"], "suspend": False, "runPolicy": policy})
        mine = {uid_of(job) for job in self.jobs()}
        for kind in (JOBS, SERVICES):
            for body in self._api.find(kind):
                if owner_uid(body) not in mine:
                    self._delete_object(kind, body)

    def _one_of(self, acts: list[tuple[int, Any]]) -> None:
        weights, functions = zip(*acts, strict=True)
        self._rng.choices(functions, weights)[0]()

    def _submit_missing(self) -> None:
        free = [name for name in NAMES if self._api.get(FINETUNEJOBS, NAMESPACE, name) is None]
        if free:
            self.submit(self._rng.choice(free))

    def _edit_policy(self, job: Body) -> None:
        field, values = self._rng.choice(
            (
                ("retries", (0, 1, 2, 5)),
                ("activeDeadlineSeconds", (60, 600, 3600)),
                ("ttlSecondsAfterFinished", (0, 20, 3600)),
                ("startDeadlineSeconds", (30, 3600)),
            )
        )
        policy = {**job["spec"]["runPolicy"], field: self._rng.choice(values)}
        self._api.update(WHO, FINETUNEJOBS, job, spec={**job["spec"], "runPolicy": policy})

    def _annotate(self, job: Body) -> None:
        notes = {"seen": str(self._rng.random())}
        self._api.update(WHO, FINETUNEJOBS, job, metadata={**job["metadata"], "annotations": notes})

    def _delete(self, job: Body) -> None:
        propagation = self._rng.choice(("Background", "Foreground"))
        self._api.delete(WHO, FINETUNEJOBS, NAMESPACE, job["metadata"]["name"], propagation=propagation)

    def _replace(self, job: Body) -> None:
        """Deleted, and made again under the same name at once."""
        name = job["metadata"]["name"]
        if not job["metadata"].get("deletionTimestamp"):
            self._api.delete(WHO, FINETUNEJOBS, NAMESPACE, name)
            self.submit(name)

    def _edit_profile(self) -> None:
        name = self._rng.choice(tuple(PROFILES))
        known = self._api.get(FINETUNEPROFILES, "", name)
        if known is None:
            self._api.create(WHO, FINETUNEPROFILES, "", {"metadata": {"name": name}, "spec": PROFILES[name]})
        elif self._rng.random() < 0.5:
            self._api.delete(WHO, FINETUNEPROFILES, "", name)
        else:
            seconds = self._rng.choice((30, 60, 90))
            edited = {**known["spec"], "terminationGracePeriodSeconds": seconds}
            self._api.update(WHO, FINETUNEPROFILES, known, spec=edited)

    def _foreign(self) -> None:
        """A Job or Service of somebody else has the name of a job."""
        kind, name = self._rng.choice((JOBS, SERVICES)), self._rng.choice(NAMES)
        if self._api.get(kind, NAMESPACE, name) is None:
            template = {"metadata": {"labels": {}}, "spec": {}}
            body = {"metadata": {"name": name}, "spec": {"suspend": True, "template": template}}
            self._api.create(WHO, kind, NAMESPACE, body)

    def _usurp(self) -> None:
        """A Job of somebody else takes the place of a job's."""
        self._remove(JOBS)
        self._foreign()

    def _remove(self, kind: Any) -> None:
        found = self._api.find(kind)
        if found:
            self._delete_object(kind, self._rng.choice(found))

    def _delete_object(self, kind: Any, body: Body) -> None:
        self._api.delete(WHO, kind, body["metadata"].get("namespace", ""), body["metadata"]["name"])

    def _forge_snapshot(self) -> None:
        """Another ConfigMap in the snapshot's place."""
        found = self._api.find(CONFIGMAPS)
        if found:
            body = self._rng.choice(found)
            self._delete_object(CONFIGMAPS, body)
            meta = {"name": body["metadata"]["name"], "labels": body["metadata"]["labels"]}
            self._api.create(WHO, CONFIGMAPS, NAMESPACE, {"metadata": meta, "data": {"run.json": "{}"}})
