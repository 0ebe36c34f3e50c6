"""Seeded schedules of faults: every call may fail before or after it takes effect, the operator may die between any
two, watch events come late or never. Whatever happens: a job that has ended gets no other Job, its end stays, no
Event is told twice, and when the faults cease everything comes to its end.

FINETUNE_CHAOS_SCHEDULES sets how many schedules run (seeds 0, 1, 2 …); a failure names the seed that repeats it.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

import pytest
from finetune_operator.audit import Auditor
from finetune_operator.client import ApiError, ConflictError
from finetune_operator.events import EventWriter
from finetune_operator.handlers import Handlers
from finetune_operator.metrics import Metrics
from finetune_operator.progress.board import ProgressBoard
from finetune_operator.projections import Key
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile.apply import Applier
from finetune_operator.reconcile.controller import Controller
from finetune_operator.reconcile.observe import Observer
from finetune_operator.resources import EVENTS, FINETUNEJOBS, FINETUNEPROFILES, JOBS
from finetune_operator.store import Store
from support.memory_api import KilledError, MemoryApi, uid_of
from support.observations import IMAGE, NOW, spec

SCHEDULES = int(os.environ.get("FINETUNE_CHAOS_SCHEDULES", "50"))
CHUNK = 25
STORM, CALM = 120, 150
ENDS = ("Succeeded", "Failed")
MAY_RECUR = {"Created", "Suspended", "Resumed"}
"""A job may be suspended more than once."""


class World:
    """Three jobs, an operator that dies and comes back, and a clock that only the schedule moves."""

    def __init__(self, seed: int) -> None:
        self.moment = NOW
        self.api = MemoryApi(seed, lambda: self.moment.strftime("%Y-%m-%dT%H:%M:%SZ"))
        self.random = self.api.random
        self.ends: dict[str, str] = {}
        tiny = {"metadata": {"name": "tiny"}, "spec": {"image": IMAGE, "isDefault": True}}
        self.api.put_new(FINETUNEPROFILES, "", tiny)
        for name, more in (("a", {}), ("b", {"runPolicy": {"retries": 1}}), ("c", {"suspend": True})):
            self.submit(name, more)
        self.operator: Controller | None = None

    def clock(self) -> datetime:
        return self.moment

    def seconds(self) -> float:
        return self.moment.timestamp()

    async def boot(self) -> None:
        """A new process: an empty memory, filled by lists."""
        metrics, store = Metrics(), Store()
        self.queue = WorkQueue(self.seconds, jitter=lambda: 0.0)
        kube: Any = self.api
        self.api.pending.clear()
        self.auditor = Auditor(kube, store, metrics, "", self.queue.add)
        await self.auditor.prime()
        self.handlers = Handlers(store, self.queue.add).by_resource()
        observer = Observer(kube, store, ProgressBoard(), "")
        events = EventWriter(kube, "operator")
        self.operator = Controller(
            kube, store, self.queue, observer, Applier(kube, store), events, metrics, 60.0, self.clock
        )

    async def step(self) -> None:
        """A little of everything."""
        self.moment += timedelta(seconds=self.random.choice([0, 1, 5]))
        if self.random.random() < 0.5:
            self.api.run_job_controller()
        try:
            if self.operator is None:
                await self.boot()
            self.deliver()
            await self.work()
        except KilledError:
            self.operator = None
        except (ApiError, TimeoutError):
            self.operator = None  # it could not even list
        self.check()

    def deliver(self) -> None:
        """Some of the watch events that are under way, in order."""
        for _ in range(self.random.randint(0, len(self.api.pending))):
            resource, kind, body = self.api.pending.pop(0)
            self.handlers[resource](kind, body)

    async def work(self) -> None:
        """As Controller.work, one key at a time."""
        assert self.operator is not None
        taken = self.queue.pop()
        if taken is None:
            return
        key, _ = taken
        try:
            again = await self.operator.reconcile(key)
        except ConflictError:
            self.queue.add_after(key, 0.2)
        except (ApiError, TimeoutError, RuntimeError):
            self.queue.add_failed(key)
        else:
            self.queue.succeeded(key)
            if again is not None:
                self.queue.add_after(key, again)
        self.queue.done(key)

    def over(self) -> bool:
        return all(uid_of(body) in self.ends for body in self.jobs().values())

    def jobs(self) -> dict[str, dict[str, Any]]:
        return {name: body for (_, name), body in self.api.kind(FINETUNEJOBS).items()}

    def check(self) -> None:
        """What must hold at every moment."""
        for body in self.jobs().values():
            uid, phase = uid_of(body), body["status"].get("phase", "")
            if uid in self.ends:
                assert phase == self.ends[uid], f"{uid} had ended as {self.ends[uid]}"
            elif phase in ENDS:
                self.ends[uid] = phase
        for made, owner in self.api.created:
            name = made["metadata"]["name"]
            assert owner is not None, f"{name} got a Job after it was deleted"
            assert made["metadata"]["ownerReferences"][0]["uid"] == uid_of(owner), f"{name} got its forerunner's Job"
            assert owner["status"].get("phase") not in ENDS, f"{name} got a Job after its end"
            suspended = owner["spec"].get("suspend", False)
            assert not suspended, f"{name} got a Job while it was suspended"
        self.api.created.clear()
        events = [e for e in self.api.kind(EVENTS).values() if e["reason"] not in MAY_RECUR]
        told = [(e["regarding"]["uid"], e["reason"], e["note"]) for e in events]
        assert len(told) == len(set(told)), f"an Event was told twice: {told}"

    def submit(self, name: str, more: dict[str, Any]) -> None:
        body = {"metadata": {"name": name}, "spec": spec(**more), "status": {}}
        self.api.put_new(FINETUNEJOBS, "art", body)

    def submit_anew(self, name: str) -> None:
        """Deleted, and made again under the same name at once."""
        self.api.remove(FINETUNEJOBS, "art", name)
        self.submit(name, {})

    def suspend(self, name: str, suspend: bool) -> None:
        body = self.jobs()[name]
        self.api.change(FINETUNEJOBS, body, spec={**body["spec"], "suspend": suspend})


async def schedule(seed: int) -> None:
    """A storm, then a calm in which everything must come to its end."""
    world = World(seed)
    world.api.fault_rate, world.api.lost_rate = 0.25, 0.2
    for number in range(STORM):
        if number % 10 == 5:
            world.suspend(world.random.choice("abc"), world.random.random() < 0.5)
        if number % 30 == 20:
            world.submit_anew(world.random.choice("abc"))
        await world.step()
    world.api.fault_rate = world.api.lost_rate = 0.0
    for name in world.jobs():
        world.suspend(name, suspend=False)
    world.operator = None
    for _ in range(CALM):
        await world.step()
        if world.over():
            break
    phases = {name: body["status"].get("phase") for name, body in world.jobs().items()}
    assert world.over(), f"not ended after the storm: {phases}"
    for name, body in world.jobs().items():
        child = world.api.kind(JOBS).get(("art", name))
        assert child is None or child["metadata"]["ownerReferences"][0]["uid"] == body["metadata"]["uid"]
        assert Key("art", name) in world.operator._store.jobs  # type: ignore[union-attr]  # it runs at the end


@pytest.mark.parametrize("first", range(0, SCHEDULES, CHUNK))
async def test_no_schedule_of_faults_breaks_the_rules(first: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "finetune_operator")
    for seed in range(first, min(first + CHUNK, SCHEDULES)):
        try:
            await schedule(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
