"""What fails the probe and what does not, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_operator import health as healths
from finetune_operator.audit import Auditor
from finetune_operator.health import FROZEN_SECONDS, Health
from finetune_operator.hearing import Hearing
from finetune_operator.leadership import Leadership
from finetune_operator.metrics import Metrics
from finetune_operator.projections import Key
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile.controller import LONGEST_PASS_SECONDS, Controller
from finetune_operator.resources import FINETUNEJOBS, PODS
from finetune_operator.scope import Scope
from finetune_operator.store import Store

KEY = Key("art", "dog")
PATIENCE = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Operator:
    """The parts that health looks at, with a Lease that is held since `leads` if at all."""

    def __init__(self, clock: Clock) -> None:
        self.queue = WorkQueue(clock)
        nothing: Any = None
        self.controller = Controller(nothing, Store(), self.queue, nothing, nothing, nothing, Metrics(), 60.0, nothing)
        self.hearing = Hearing(clock)
        self.leadership = Leadership("ns", "lease", "operator")
        self.leads: float | None = None
        self.electing = True
        self.leadership.since = lambda: self.leads  # type: ignore[method-assign]  # stands for a Lease
        self.leadership.well = lambda: self.electing  # type: ignore[method-assign]  # stands for its thread
        self.health = Health(Store(), self.queue, self.controller, self.hearing, PATIENCE, self.leadership)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(healths, "time", SimpleNamespace(monotonic=found))
    return found


@pytest.fixture
async def operator(clock: Clock) -> Operator:
    return Operator(clock)


async def test_a_worker_that_is_busy_for_too_long_is_named(operator: Operator, clock: Clock) -> None:
    operator.controller.busy[KEY] = clock.now
    operator.controller.busy[Key("art", "new")] = clock.now + FROZEN_SECONDS
    clock.now += FROZEN_SECONDS
    assert operator.health.problems() == []
    clock.now += 1
    assert operator.health.problems() == ["a worker has been busy with art/dog for more than 180 s"]


async def test_jobs_that_wait_while_no_pass_ends(operator: Operator, clock: Clock) -> None:
    operator.queue.add(KEY)
    clock.now += 10 * FROZEN_SECONDS
    assert operator.health.problems() == [], "a standby's jobs wait"
    operator.leads = clock.now
    assert operator.health.problems() == [], "it has just begun"
    clock.now += FROZEN_SECONDS + 1
    assert operator.health.problems() == ["1 jobs wait, and no worker has ended a pass for 180 s"]
    operator.controller.finished = clock.now
    assert operator.health.problems() == [], "a pass that fails is a sign of life too: it may be the API server"
    clock.now += FROZEN_SECONDS + 1
    assert operator.queue.pop() is not None
    assert operator.health.problems() == [], "nothing waits"


async def test_a_lease_that_nobody_looks_after(operator: Operator) -> None:
    operator.electing = False
    assert operator.health.problems() == ["the thread that renews the Lease has ended"]


async def test_a_watch_that_missed_something_and_stays_silent(operator: Operator, clock: Clock) -> None:
    hearing = operator.hearing
    hearing.heard(PODS)
    hearing.heard(FINETUNEJOBS)
    clock.now += 1000
    assert operator.health.problems() == [], "silence alone is no sign: nothing may have happened"
    began = hearing.now()
    clock.now += 10
    hearing.missed(PODS, began)
    assert operator.health.problems() == []
    clock.now += PATIENCE / 2
    hearing.missed(PODS, hearing.now())
    clock.now += PATIENCE / 2 + 1
    assert operator.health.problems() == ["the watch of pods is deaf: the audit found changes that it did not bring"]
    hearing.heard(PODS)
    assert operator.health.problems() == []


async def test_a_watch_that_is_merely_late_is_not_deaf(operator: Operator, clock: Clock) -> None:
    began = operator.hearing.now()
    clock.now += 1
    operator.hearing.heard(PODS)
    operator.hearing.missed(PODS, began)
    clock.now += 10 * PATIENCE
    assert operator.health.problems() == []


class Listing:
    """An API server with these FineTuneJobs."""

    def __init__(self, *bodies: dict[str, Any]) -> None:
        self.bodies = list(bodies)

    async def list_pages(self, resource: object, *_: object) -> Any:
        yield self.bodies if resource is FINETUNEJOBS else []

    async def get(self, _: object, __: object, name: str) -> dict[str, Any] | None:
        return next((body for body in self.bodies if body["metadata"]["name"] == name), None)


def body(name: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": "art", "uid": name, "resourceVersion": "5"}
    return {"metadata": {**meta, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}}


async def test_the_audit_accuses_a_watch_of_what_exists_and_not_of_what_vanished(
    operator: Operator, clock: Clock
) -> None:
    """After a relist kopf is silent about objects that vanished in between; the audit removes them."""
    server: Any = Listing(body("dog"))
    store = Store()
    auditor = Auditor(server, store, Metrics(), Scope(), lambda _: None, operator.hearing)
    await auditor.prime()
    server.bodies = []
    assert await auditor.audit(0) == 1
    clock.now += PATIENCE + 1
    assert operator.health.problems() == []
    server.bodies = [body("cat")]
    assert await auditor.audit(0) == 1
    clock.now += PATIENCE + 1
    assert len(operator.health.problems()) == 1


async def test_a_pass_has_an_end(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that slow requests, however many, never look like a frozen worker."""
    assert LONGEST_PASS_SECONDS < FROZEN_SECONDS
    monkeypatch.setattr("finetune_operator.reconcile.controller.LONGEST_PASS_SECONDS", 0.01)
    ended = asyncio.Event()

    async def endless(_: Key) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(operator.controller, "reconcile", endless)
    operator.queue.add(KEY)
    worker = asyncio.create_task(operator.controller.work())
    async with asyncio.timeout(5):
        await ended.wait()
    await asyncio.sleep(0)
    assert operator.controller.busy == {}
    assert not worker.done()
    worker.cancel()
