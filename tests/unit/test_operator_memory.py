"""What the operator remembers may lag behind what it has written: nothing wrong may follow from it. Each of these was
found by a schedule of tests/chaos."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.status import AttemptStatus
from finetune_operator.audit import Auditor
from finetune_operator.client import Object
from finetune_operator.handlers import Handlers
from finetune_operator.hearing import Hearing
from finetune_operator.metrics import Metrics
from finetune_operator.policies.attempts import attempts_of
from finetune_operator.progress.board import ProgressBoard
from finetune_operator.projections import ChildState, child_state, job_state, pod_state
from finetune_operator.reconcile.actions import CreateSnapshot, Plan
from finetune_operator.reconcile.observe import Observer
from finetune_operator.reconcile.observed import Observed
from finetune_operator.reconcile.plan import plan
from finetune_operator.resources import FINETUNEJOBS, JOBS, PODS, Resource
from finetune_operator.scope import Scope
from finetune_operator.specs.configmap import snapshot_in
from finetune_operator.store import Store
from finetune_operator.workloads import WorkloadReader
from support.observations import KEY, NOW, UID, at, begun, child, condition, ended, observed, running, snapshot, spec
from test_operator_store import child_body, job_body, pod_body

WORKS = AttemptStatus(pod_uid="pod-1", pod_name="dog-abcde", started_at=at(-50))


def test_a_pod_that_was_not_heard_of_yet_is_not_lost() -> None:
    """The status may tell of it already, when another operator wrote it."""
    seen = observed(begun(attempts=[WORKS]), child=child())
    assert plan(seen, NOW) == Plan(look=True)
    found = plan(replace(seen, pods=(running(),), looked=True, snapshot=snapshot()), NOW)
    assert found.status is not None
    assert [attempt.reason for attempt in found.status.attempts or []] == [None]
    gone = plan(replace(seen, looked=True, snapshot=snapshot()), NOW)
    assert gone.status is not None
    assert [attempt.reason for attempt in gone.status.attempts or []] == ["Lost"]


def test_an_attempt_that_was_lost_does_not_go_on() -> None:
    """Late news of how its pod was before is no news; its own last word is."""
    lost = WORKS.model_copy(update={"reason": "Lost"})
    assert attempts_of([lost], [running()], UID) == [lost]
    assert [attempt.reason for attempt in attempts_of([lost], [ended(75)], UID)] == ["Interrupted"]


@pytest.mark.parametrize(
    ("reason", "seen"),
    [
        ("Suspended", observed(begun(), spec=spec(suspend=True), looked=True, snapshot=snapshot())),
        ("Resumed", observed(begun(condition("Suspended", "True", "Suspended")), looked=True, snapshot=snapshot())),
        ("Queued", observed(begun(active_since=at(-9)), child=child(suspended=True, queue="gpus"))),
        ("Admitted", observed(begun(condition("PodsReady", "False", "Queued")), child=child(queue="gpus"))),
    ],
)
def test_news_that_could_not_be_recorded_are_the_same_news_later(reason: str, seen: Observed) -> None:
    """An Event's name is made of its mark: were the clock in it, the news would be told twice."""

    def mark(after: float) -> list[str]:
        made = plan(seen, NOW + timedelta(seconds=after))
        return [news.mark for news in made.announcements if news.reason == reason]

    assert len(mark(0)) == 1
    assert mark(0) == mark(7)


@pytest.mark.parametrize("data", [None, {}, {"run.json": "{}"}, {"profile.json": "{}"}])
def test_a_config_map_that_is_no_snapshot_at_all_is_replaced(data: dict[str, str] | None) -> None:
    seen = observed(begun(), looked=True, snapshot=snapshot_in({"data": data}))
    first = plan(seen, NOW).actions[0]
    assert isinstance(first, CreateSnapshot)
    assert first.replace


# --- what is gone stays gone, what is there is not forgotten


class Cluster:
    """An API server whose answers are under way while the watches go on: `meanwhile` happens between the two."""

    def __init__(self) -> None:
        self.objects: dict[Resource, list[Object]] = {}
        self.meanwhile: dict[Resource, Callable[[], None]] = {}

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        found = next((b for b in self.objects.get(resource, []) if b["metadata"]["name"] == name), None)
        self.meanwhile.pop(resource, lambda: None)()
        return found

    async def list_pages(self, resource: Resource, *_: object, **__: object) -> AsyncIterator[list[Object]]:
        found = list(self.objects.get(resource, []))
        self.meanwhile.pop(resource, lambda: None)()
        yield found


def observer_of(cluster: Cluster, store: Store) -> Observer:
    kube: Any = cluster
    return Observer(kube, store, ProgressBoard(), "")


@pytest.mark.parametrize("resource", [FINETUNEJOBS, JOBS, PODS], ids=lambda resource: resource.kind)
async def test_what_the_watch_brings_during_a_look_is_not_taken_for_gone(resource: Resource) -> None:
    store, cluster = Store(), Cluster()
    cluster.objects[FINETUNEJOBS] = [] if resource is FINETUNEJOBS else [job_body(1)]
    news: dict[Resource, Callable[[], None]] = {
        FINETUNEJOBS: lambda: store.put_job(job_state(job_body(2))),
        JOBS: lambda: store.put_child(child_state(child_body(2))),
        PODS: lambda: store.put_pod(pod_state(pod_body(2))),
    }
    cluster.meanwhile[resource] = news[resource]
    await observer_of(cluster, store).observe(KEY, NOW, look=True)
    known = {FINETUNEJOBS: store.jobs, JOBS: store.children, PODS: [p for p in store.pods() if not p.gone]}
    assert len(known[resource]) == 1


async def test_who_begins_to_lead_forgets_what_is_gone() -> None:
    store, cluster = Store(), Cluster()
    store.put_job(job_state(job_body(1)))
    store.put_child(child_state(child_body(1)))
    store.put_pod(pod_state(pod_body(1)))
    cluster.objects[FINETUNEJOBS] = [job_body(1)]
    kube: Any = cluster
    await Auditor(kube, store, Metrics(), Scope(), lambda _: None, Hearing()).prime()
    assert len(store.jobs) == 1
    assert not store.children
    assert not list(store.pods())


def test_a_watch_that_is_late_brings_nothing_back() -> None:
    store = Store()
    handlers = Handlers(store, lambda _: None)
    handlers.on_job("ADDED", job_body(1))
    handlers.on_pod("ADDED", pod_body(2))
    (known,) = store.pods()
    store.drop_pod(known)
    store.forget_gone(KEY, {known.uid})
    handlers.on_pod("MODIFIED", pod_body(3))
    assert not list(store.pods())
    handlers.on_pod("ADDED", pod_body(4))
    assert len(list(store.pods())) == 1


class Nobody:
    """An API server that counts how often it is asked for Workloads."""

    asked = 0

    async def list_pages(self, *_: object, **__: object) -> Any:
        self.asked += 1
        for page in ():
            yield page


@pytest.mark.parametrize(
    ("job", "asks"),
    [
        (child(suspended=True), 1),
        (child(suspended=False), 0),
        (child(suspended=True, complete=True, finished_at=at(-1)), 0),
    ],
    ids=["held back", "at work", "stopped as it ended"],
)
async def test_kueue_is_asked_only_while_a_job_is_held_back(job: ChildState, asks: int) -> None:
    store, kube = Store(), Nobody()
    store.put_child(job)
    given: Any = kube
    await WorkloadReader(given, store, "", lambda _: None).read()
    assert kube.asked == asks
