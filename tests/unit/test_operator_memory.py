"""What the operator remembers may lag behind what it has written: nothing wrong may follow from it. Each of these was
found by a schedule of tests/chaos."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.status import AttemptStatus
from finetune_operator.projections import ChildState
from finetune_operator.reconcile.actions import CreateSnapshot, Plan
from finetune_operator.reconcile.observed import Observed
from finetune_operator.reconcile.plan import plan
from finetune_operator.specs.configmap import snapshot_in
from finetune_operator.store import Store
from finetune_operator.workloads import WorkloadReader
from support.observations import NOW, at, begun, child, condition, observed, running, snapshot, spec

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
