"""What the operator remembers, and how events, own writes and the audit bring it there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from finetune_operator.audit import Auditor
from finetune_operator.handlers import Handlers
from finetune_operator.hearing import Hearing
from finetune_operator.metrics import Metrics
from finetune_operator.projections import Key, job_state, pod_state
from finetune_operator.resources import CORE_EVENTS, FINETUNEJOBS, FINETUNEPROFILES, JOBS, PODS, Resource
from finetune_operator.scope import Scope
from finetune_operator.specs.naming import labels
from finetune_operator.store import Store
from support.observations import IDENTITY, KEY, UID, child, pod, running, spec

Body = dict[str, Any]


def job_body(version: int = 1, uid: str = UID, name: str = "dog", **status: object) -> Body:
    meta = {"name": name, "namespace": "art", "uid": uid, "resourceVersion": str(version), "generation": 1}
    return {
        "kind": "FineTuneJob",
        "metadata": meta | {"creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec(),
        "status": status,
    }


def pod_body(version: int = 1, uid: str = "pod-1", phase: str = "Running") -> Body:
    meta = {"name": "dog-abcde", "namespace": "art", "uid": uid, "resourceVersion": str(version)}
    return {
        "kind": "Pod",
        "metadata": meta | {"creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels(IDENTITY)},
        "spec": {"containers": [{"name": "trainer", "image": "i"}]},
        "status": {"phase": phase},
    }


def child_body(version: int = 1, uid: str = "job-uid", name: str = "dog") -> Body:
    owner = {"uid": UID, "controller": True}
    meta = {"name": name, "namespace": "art", "uid": uid, "resourceVersion": str(version), "ownerReferences": [owner]}
    return {"kind": "Job", "metadata": meta | {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}, "status": {}}


def profile_body(name: str = "tiny") -> Body:
    return {"kind": "FineTuneProfile", "metadata": {"name": name, "uid": name, "resourceVersion": "1"}, "spec": {}}


def test_an_older_state_never_replaces_a_newer_one() -> None:
    store = Store()
    store.put_child(child(version=9, failed=1))
    store.put_child(child(version=8))
    assert store.children[KEY].failed == 1
    store.put_child(child(version=7, uid="former-job"))
    assert store.children[KEY].uid == "job-uid", "versions are comparable across objects of a kind"


def test_the_end_of_a_former_job_does_not_remove_its_successor() -> None:
    store = Store()
    store.put_child(child(version=9, uid="new"))
    store.drop_child(KEY, "old")
    assert store.children[KEY].uid == "new"


def test_the_answer_to_an_own_write_does_not_revive_a_deleted_job() -> None:
    store = Store()
    store.put_job(job_state(job_body(1)))
    store.drop_job(KEY, UID)
    store.replace_job(job_state(job_body(2)))
    assert KEY not in store.jobs


def test_a_deleted_pod_is_kept_until_its_end_is_told() -> None:
    store = Store()
    store.put_job(job_state(job_body()))
    store.put_pod(running())
    store.drop_pod(running(version=8))
    store.put_pod(running(version=9))  # late news of what is gone
    (kept,) = store.pods_of(KEY)
    assert kept.gone
    assert list(store.pods()) == []
    store.forget_gone(KEY, {"pod-1"})
    assert store.pods_of(KEY) == ()


def test_a_warning_is_remembered_for_the_job_that_it_speaks_of() -> None:
    store, woken = Store(), []
    handlers = Handlers(store, woken.append)
    event: Body = {
        "metadata": {"namespace": "art", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "involvedObject": {"kind": "Job", "namespace": "art", "name": "dog", "uid": "job-uid"},
        "reason": "FailedCreate",
        "message": "exceeded quota: small",
        "lastTimestamp": "2026-01-01T00:01:00Z",
    }
    handlers.on_event("ADDED", event)
    assert woken == []
    store.put_child(child())
    handlers.on_event("ADDED", event)
    handlers.on_event("ADDED", event | {"lastTimestamp": "2026-01-01T00:00:30Z", "message": "older"})
    found = store.warning_of(KEY)
    assert found is not None
    assert found.message == "exceeded quota: small"
    handlers.on_event("ADDED", event | {"involvedObject": event["involvedObject"] | {"uid": "another"}})
    assert woken == [KEY, KEY]


def test_every_event_wakes_the_job_that_it_concerns_and_no_other() -> None:
    store, woken = Store(), []
    handles = Handlers(store, woken.append).by_resource()
    handles[FINETUNEJOBS]("ADDED", job_body())
    handles[FINETUNEJOBS]("ADDED", job_body(name="done", uid="u2", phase="Succeeded"))
    handles[JOBS]("ADDED", child_body())
    handles[PODS]("ADDED", pod_body())
    assert woken == [KEY, Key("art", "done"), KEY, KEY]
    woken.clear()
    handles[FINETUNEPROFILES](None, profile_body())
    assert woken == [KEY], "a profile matters only to jobs that wait for one"
    assert list(store.profiles) == ["tiny"]
    for resource, body in ((PODS, pod_body(2)), (JOBS, child_body(2)), (FINETUNEJOBS, job_body(2))):
        handles[resource]("DELETED", body)
    handles[FINETUNEPROFILES]("DELETED", profile_body())
    assert (dict(store.jobs).keys(), dict(store.children), dict(store.profiles)) == ({Key("art", "done")}, {}, {})
    assert CORE_EVENTS in handles


class ApiServer:
    """Lists and gets from a dict, as the client does."""

    def __init__(self, *bodies: tuple[Resource, Body]) -> None:
        self.objects: dict[Resource, list[Body]] = {r: [] for r in (FINETUNEJOBS, FINETUNEPROFILES, JOBS, PODS)}
        for resource, body in bodies:
            self.objects[resource].append(body)

    async def list_pages(self, resource: Resource, *_: object, **__: object) -> AsyncIterator[list[Body]]:
        yield self.objects[resource]

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Body | None:
        for body in self.objects[resource]:
            if (body["metadata"].get("namespace"), body["metadata"]["name"]) == (namespace, name):
                return body
        return None


async def test_the_audit_finds_what_the_watch_has_missed() -> None:
    server = ApiServer(
        (FINETUNEJOBS, job_body()), (FINETUNEPROFILES, profile_body()), (JOBS, child_body()), (PODS, pod_body())
    )
    store, woken = Store(), []
    auditor = Auditor(server, store, Metrics(), Scope(), woken.append, Hearing())  # type: ignore[arg-type]  # stands for the client
    assert not store.primed
    await auditor.prime()
    assert store.primed
    assert woken == [KEY]
    assert await auditor.audit(0) == 0

    woken.clear()
    server.objects[FINETUNEJOBS] = [job_body(5, phase="Running"), job_body(6, uid="new", name="cat")]
    server.objects[JOBS] = []
    server.objects[PODS] = [pod_body(7, uid="pod-2")]
    server.objects[FINETUNEPROFILES] = []
    assert await auditor.audit(0) == 5
    assert store.jobs[KEY].phase == "Running"
    assert store.jobs[Key("art", "cat")].uid == "new"
    assert (dict(store.children), dict(store.profiles)) == ({}, {})
    assert [pod.uid for pod in store.pods()] == ["pod-2"]
    assert set(woken) == {KEY, Key("art", "cat")}
    assert await auditor.audit(0) == 0


async def test_an_own_write_that_the_watch_has_yet_to_bring_is_no_drift() -> None:
    server = ApiServer((FINETUNEJOBS, job_body(3)))
    store = Store()
    auditor = Auditor(server, store, Metrics(), Scope(), lambda _: None, Hearing())  # type: ignore[arg-type]
    await auditor.prime()
    store.replace_job(job_state(job_body(4)))
    assert await auditor.audit(0) == 0


def test_projections_take_what_the_kubelet_says() -> None:
    body = pod_body(phase="Failed")
    terminated = {"exitCode": 137, "reason": "OOMKilled", "message": "m", "finishedAt": "2026-01-01T00:02:00Z"}
    body["status"] |= {
        "reason": "Evicted",
        "podIP": "10.0.0.9",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "no node"},
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"},
        ],
        "containerStatuses": [
            {"name": "injected", "state": {"running": {}}},
            {"name": "trainer", "state": {"terminated": terminated}},
        ],
    }
    state = pod_state(body)
    assert state == replace(
        pod(),
        job_uid="",
        created="2026-01-01T00:00:00Z",
        version=1,
        phase="Failed",
        ip="10.0.0.9",
        node="",
        image="i",
        unschedulable="no node",
        disruption="EvictionByEvictionAPI",
        pod_reason="Evicted",
        exit_code=137,
        exit_reason="OOMKilled",
        termination_message="m",
        finished_at="2026-01-01T00:02:00Z",
    )
