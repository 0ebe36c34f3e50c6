"""Pods that nothing else would end, queues, and how long a job stands still after an interruption."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.progress import Progress
from finetune_api.status import AttemptStatus
from finetune_operator.policies.attempts import Tally, attempts_of, tally
from finetune_operator.policies.queueing import QueueNote
from finetune_operator.policies.readiness import readiness
from finetune_operator.policies.replacement import LONGEST_PAUSE_SECONDS, wants_new_job
from finetune_operator.progress.reading import Reading
from finetune_operator.projections import ChildState, PodState
from finetune_operator.reconcile.actions import CreateChild, DeletePod
from finetune_operator.reconcile.plan import plan
from finetune_operator.reconcile.pods import pods_to_end
from finetune_operator.specs.job import Queue
from finetune_operator.workloads import note_of
from support.observations import (
    NOW,
    UID,
    at,
    begun,
    child,
    condition,
    ended,
    observed,
    pod,
    running,
    snapshot,
    spec,
)

# --- a node that no longer answers


@pytest.mark.parametrize(
    ("state", "due", "in_seconds"),
    [
        (running(), False, None),
        (running(deletion_at=at(30)), False, 150),
        (running(deletion_at=at(-119)), False, 1),
        (running(deletion_at=at(-120)), True, None),
        (ended(0, deletion_at=at(-500)), False, None),
        (pod(deletion_at=at(-500)), True, None),
    ],
    ids=["works", "has its grace", "a last second", "outlived its grace", "has ended", "never started"],
)
def test_a_pod_that_outlives_its_grace_by_two_minutes_is_deleted_by_force(
    state: PodState, due: bool, in_seconds: float | None
) -> None:
    actions, timers = pods_to_end(child(), [state], NOW)
    assert actions == ([DeletePod("dog-abcde", "pod-1", "node-1", force=True)] if due else [])
    assert timers == ([in_seconds] if in_seconds is not None else [])


def test_a_profile_may_leave_a_lost_node_to_people() -> None:
    lost = running(deletion_at=at(-500))
    waits = child(node_lost="Wait")
    made = plan(observed(begun(), child=waits, pods=(lost,)), NOW)
    assert made.actions == ()
    assert made.status is not None
    ready = next(c for c in made.status.conditions or [] if c.type == "PodsReady")
    assert ready.reason == "NodeLost"
    assert "kubectl delete pod dog-abcde --namespace art --force" in ready.message


def test_a_lost_pod_is_announced_once_and_ended_after_the_jobs_end_too() -> None:
    lost = running(deletion_at=at(-500))
    made = plan(observed(begun(), child=child(), pods=(lost,)), NOW)
    assert [(a.reason, a.kind) for a in made.announcements if a.reason == "NodeLost"] == [("NodeLost", "Warning")]
    over = begun(condition("Failed", "True", "DeadlineExceeded"), completion_time=at(-5))
    after = plan(observed(over, child=child(deleting=True), pods=(lost,)), NOW)
    assert [type(action).__name__ for action in after.actions] == ["DeletePod"]
    assert [a.reason for a in after.announcements] == ["NodeLost"]


# --- groups


def member(index: int, **changes: Any) -> PodState:
    key = pod().key._replace(name=f"dog-{index}")
    return running(**{"index": index, "uid": f"pod-{index}", "key": key, "created": at(-300), **changes})


@pytest.mark.parametrize(
    ("group", "deleted", "timers"),
    [
        ([member(0), member(1)], [], []),
        ([member(0), member(1, phase="Failed", running=False, exit_code=137, finished_at=at(-20))], [], [40.0]),
        ([member(0), member(1, phase="Failed", running=False, exit_code=137, finished_at=at(-61))], ["dog-0"], []),
        ([member(0), member(1, phase="Succeeded", running=False, exit_code=0, finished_at=at(-500))], [], []),
        (
            [
                member(0, created=at(-10)),
                member(1, uid="old", phase="Failed", running=False, exit_code=76, finished_at=at(-30)),
                member(1, created=at(-9)),
            ],
            [],
            [],
        ),
        (
            [
                member(0),
                member(1, uid="old", phase="Failed", running=False, exit_code=1, finished_at=at(-90)),
                member(1, created=at(-80)),
            ],
            ["dog-0"],
            [],
        ),
    ],
    ids=["whole", "just broken", "a survivor", "ended well", "all are new", "a survivor beside the next one"],
)
def test_a_pod_that_does_not_end_with_its_group_is_deleted(
    group: list[PodState], deleted: list[str], timers: list[float]
) -> None:
    actions, found = pods_to_end(child(nodes=2, created=at(-600)), [replace(p) for p in group], NOW)
    assert [action.name for action in actions] == deleted
    assert not any(action.force for action in actions)
    assert found == timers


def test_a_group_is_ready_when_all_of_it_runs() -> None:
    both = readiness([member(0), member(1)], None, "", nodes=2)
    assert (both.status, "dog-0" in both.message, "dog-1" in both.message) == ("True", True, True)
    half = readiness([member(0), member(1, running=False, phase="Pending", unschedulable="0/1 nodes")], None, "", 2)
    assert half.reason == "Unschedulable"
    assert readiness([member(0)], None, "", nodes=2).message == "1 of 2 pods run"


def test_the_first_pod_stands_for_its_group_unless_another_says_why() -> None:
    group = [
        member(0, phase="Failed", running=False, exit_code=76),
        member(1, phase="Failed", running=False, exit_code=137, exit_reason="OOMKilled"),
        member(2, phase="Failed", running=False, exit_code=76),
    ]
    found = [(attempt.pod_name, attempt.reason) for attempt in attempts_of([], group, UID)]
    assert found == [("dog-0", "PeerLost"), ("dog-1", "OOMKilled")]


# --- queues


@pytest.mark.parametrize(
    ("state", "note", "worked", "reason", "says"),
    [
        (child(suspended=True, queue="gpus"), None, False, "Queued", 'it waits in queue "gpus"'),
        (
            child(suspended=True, queue="gpus"),
            QueueNote("couldn't assign flavors to pod set main: insufficient unused quota"),
            False,
            "Queued",
            'it waits in queue "gpus": couldn\'t assign flavors to pod set main: insufficient unused quota',
        ),
        (
            child(suspended=True, queue="gpus"),
            QueueNote("", "Preempted to accommodate a workload"),
            False,
            "Preempted",
            "it was stopped (Preempted to accommodate",
        ),
        (child(suspended=True, queue="gpus"), None, True, "Preempted", "it goes on from its last checkpoint"),
        (child(suspended=True), None, False, "Queued", "whoever suspended its Job"),
    ],
)
def test_why_a_job_waits_in_its_queue(
    state: ChildState, note: QueueNote | None, worked: bool, reason: str, says: str
) -> None:
    attempts = [AttemptStatus(pod_uid="p", started_at=at(-50), reason="Interrupted")] if worked else None
    made = plan(observed(begun(attempts=attempts), child=state, note=note), NOW)
    assert made.status is not None
    ready = next(c for c in made.status.conditions or [] if c.type == "PodsReady")
    assert (made.status.phase, ready.reason) == ("Queued", reason)
    assert says in ready.message
    assert made.actions == (), "nothing of Kueue's is touched"


def test_a_queued_job_is_made_suspended_and_its_clock_stands_still() -> None:
    queued = spec({"queueName": "gpus", "priorityClass": "high"})
    made = plan(observed(spec=queued, looked=True), NOW)
    create = next(action for action in made.actions if isinstance(action, CreateChild))
    assert create.queue == Queue("gpus", "high")
    assert made.status is not None
    assert (made.status.start_time, made.status.active_since) == (None, None)
    waits = child(suspended=True, queue="gpus")
    made = plan(observed(begun(active_since=at(-40)), spec=queued, child=waits), NOW)
    assert made.status is not None
    assert (made.status.active_since, made.status.active_seconds) == (None, 40)
    admitted = replace(waits, suspended=False, started_at=at(-3))
    made = plan(observed(begun(active_since=None, active_seconds=40), spec=queued, child=admitted), NOW)
    assert made.status is not None
    assert (made.status.active_since, made.status.active_seconds) == (at(-3), 40)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], QueueNote("")),
        ([("QuotaReserved", "False", "Pending", "no quota")], QueueNote("no quota")),
        ([("QuotaReserved", "True", "QuotaReserved", "reserved"), ("Admitted", "True", "Admitted", "")], QueueNote("")),
        ([("Evicted", "True", "Preempted", "for another")], QueueNote("", "for another")),
        ([("Evicted", "False", "QuotaReserved", "before")], QueueNote("")),
    ],
)
def test_what_a_workload_says(conditions: list[tuple[str, ...]], expected: QueueNote) -> None:
    told = [dict(zip(("type", "status", "reason", "message"), c, strict=True)) for c in conditions]
    body = {"metadata": {"labels": {"kueue.x-k8s.io/job-uid": "u"}}, "status": {"conditions": told}}
    assert note_of(body) == ("u", expected)
    assert note_of({"metadata": {}}) is None


# --- how long a job stands still


def interruption(number: int) -> AttemptStatus:
    return AttemptStatus(pod_uid=f"p{number}", started_at=at(-50 + number), reason="EvictionByEvictionAPI")


@pytest.mark.parametrize(
    ("ends", "state", "live", "expected"),
    [
        (3, child(), False, False),
        (4, child(), False, True),
        (4, child(), True, False),
        (4, child(queue="gpus"), False, False),
        (4, child(finished_at=at(-1), failure="BackoffLimitExceeded"), False, False),
        (4, child(deleting=True), False, False),
        (4, child(created=at(-10)), False, False),
        (2, child(nodes=2), False, True),
        (1, child(nodes=2), False, False),
    ],
    ids=[
        "bearable",
        "too long",
        "at work",
        "queued",
        "over",
        "going away",
        "made anew before",
        "a group",
        "a group once",
    ],
)
def test_after_interruptions_the_pause_is_bounded_by_a_new_job(
    ends: int, state: ChildState, live: bool, expected: bool
) -> None:
    attempts = [interruption(number) for number in range(ends)]
    assert wants_new_job(state, attempts, live) is expected
    failed = [*attempts[:-1], attempts[-1].model_copy(update={"reason": "Error"})]
    assert not wants_new_job(state, failed, live), "failures keep their growing pauses"
    assert LONGEST_PAUSE_SECONDS == 40


def test_the_new_job_goes_on_with_the_retries_that_are_left() -> None:
    attempts = [interruption(number) for number in range(4)]
    made = plan(
        observed(begun(attempts=attempts, retries=1, interruptions=4), child=child(retries_before=1, backoff_limit=2)),
        NOW,
    )
    assert [type(action).__name__ for action in made.actions] == ["DeleteChild"]
    status = made.status
    assert status is not None
    made = plan(observed(status, looked=True, snapshot=snapshot()), NOW)
    (create,) = made.actions
    assert isinstance(create, CreateChild)
    assert (create.backoff_limit, create.retries_before) == (2, 1)


# --- what an interruption costs


def said(uid: str, stage: str, step: int, resumed: int | None = None) -> Reading:
    answer = Progress.model_validate(
        {"runUid": UID, "podUid": uid, "stage": stage, "step": step, "totalSteps": 100, "resumedFromStep": resumed}
    )
    return Reading(answer, NOW, stale=False)


def test_lost_steps_are_counted_when_the_next_attempt_goes_on() -> None:
    first = running(uid="a", created=at(-50))
    made = plan(observed(begun(), child=child(), pods=(first,), reading=said("a", "Training", 37)), NOW)
    assert made.status is not None
    (attempt,) = made.status.attempts or []
    assert (attempt.step, attempt.resumed_from_step, made.status.lost_steps) == (37, 0, 0)

    evicted = replace(first, phase="Failed", running=False, disruption="EvictionByEvictionAPI")
    second = running(uid="b", created=at(-20))
    seen = observed(made.status, child=child(), pods=(evicted, second), reading=said("b", "Fetching", 0))
    made = plan(seen, NOW)
    assert made.status is not None
    assert (made.status.interruptions, made.status.lost_steps) == (1, 0), "it is not known yet"

    seen = observed(made.status, child=child(), pods=(evicted, second), reading=said("b", "Training", 31, 30))
    made = plan(seen, NOW)
    assert made.status is not None
    assert [(a.step, a.resumed_from_step) for a in made.status.attempts or []] == [(37, 0), (31, 30)]
    assert (made.status.interruptions, made.status.lost_steps) == (1, 7)
    again = plan(replace(seen, status=made.status), NOW)
    assert again.status is not None
    assert (again.status.interruptions, again.status.lost_steps) == (1, 7), "told once"


def test_totals_outlive_the_attempts_that_are_no_longer_listed() -> None:
    recorded = [interruption(number) for number in range(20)]
    attempts = [*recorded[1:], interruption(20)]
    assert tally(Tally(20, 5), recorded, attempts) == Tally(21, 5)
