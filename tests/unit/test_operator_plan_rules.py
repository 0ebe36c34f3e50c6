"""What plan() keeps to whatever is observed: absence is checked, ends are final, counts run over all jobs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_api.progress import EngineInUse, Judgement, Progress
from finetune_api.status import EngineStatus, FineTuneJobStatus, JudgementStatus, ResolvedStatus
from finetune_operator.progress.reading import Reading
from finetune_operator.reconcile.actions import Plan
from finetune_operator.reconcile.observed import Observed
from finetune_operator.reconcile.plan import plan
from support.observations import (
    NOW,
    actions,
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

SUSPENDED = condition("Suspended", "True", "Suspended", -30)


@pytest.mark.parametrize(
    "seen",
    [
        observed(begun()),
        observed(begun(SUSPENDED)),
        observed(begun(SUSPENDED), spec=spec(suspend=True), child=child()),
        observed(begun(SUSPENDED), spec=spec(suspend=True), pods=(running(),)),
        observed(begun(), spec=spec(suspend=True)),
        observed(begun(), child=child(complete=True, finished_at=at(-1))),
        observed(begun(), child=child(complete=True, finished_at=at(-1)), pods=(running(),)),
        observed(begun(), child=child(), pods=(pod(),), mount_failure="configmap not found"),
        observed(child=child()),
        observed(begun(), child=child(), spec=spec({"startDeadlineSeconds": 60})),
        observed(begun(active_since=at(-60)), child=child(), spec=spec({"activeDeadlineSeconds": 60})),
    ],
    ids=[
        "its Job is missing",
        "it is to be resumed",
        "it is suspended and its Job seems to be there",
        "it is suspended and a pod seems to run",
        "its Job seems to be gone",
        "its Job has ended without a pod",
        "its Job has ended with a pod that runs",
        "a volume cannot be mounted",
        "a Job without a status",
        "its time to start is over",
        "its time is over",
    ],
)
def test_absence_is_checked_before_anything_follows_from_it(seen: Observed) -> None:
    assert plan(seen, NOW) == Plan(look=True)


@pytest.mark.parametrize("end", ["Succeeded", "Failed"])
def test_a_job_that_has_ended_never_makes_a_child_again(end: str) -> None:
    over = begun(condition(end, "True", "Whatever"), completion_time=at(-100))
    for seen in (observed(over), observed(over, looked=True), observed(over, looked=True, snapshot=snapshot())):
        assert plan(seen, NOW) == Plan()
    assert actions(plan(observed(over, child=child()), NOW)) == ["DeleteChild"]
    assert actions(plan(observed(over, child=child(complete=True, finished_at=at(-1))), NOW)) == []


@pytest.mark.parametrize(("ttl", "does", "later"), [(100, ["DeleteJob"], None), (130, [], 30.0), (None, [], None)])
def test_ttl(ttl: int | None, does: list[str], later: float | None) -> None:
    over = begun(condition("Succeeded", "True", "Published"), completion_time=at(-100))
    policy = {} if ttl is None else {"ttlSecondsAfterFinished": ttl}
    made = plan(observed(over, spec=spec(policy)), NOW)
    assert actions(made) == does
    assert made.requeue_after == later
    assert made.status is None


def test_a_job_that_is_being_deleted_is_left_alone() -> None:
    assert plan(observed(deleting=True), NOW) == Plan()


def test_another_jobs_job_is_never_touched() -> None:
    foreign = child(owner_uid="somebody-else")
    made = plan(observed(begun(), child=foreign, looked=True, snapshot=snapshot()), NOW)
    assert actions(made) == ["CreateChild"]
    suspend = observed(begun(), spec=spec(suspend=True), child=foreign, looked=True, snapshot=snapshot())
    assert actions(plan(suspend, NOW)) == []


def test_a_job_waits_while_its_old_job_goes_away() -> None:
    made = plan(observed(begun(), child=child(deleting=True)), NOW)
    assert actions(made) == []
    assert made.requeue_after is not None


def test_a_forged_snapshot_is_replaced() -> None:
    forged = replace(snapshot(), profile_json='{"image":"evil:1"}')
    made = plan(observed(begun(), looked=True, snapshot=forged), NOW)
    create, start = made.actions
    assert create.replace  # type: ignore[union-attr]  # the actions are named below
    assert start.snapshot == snapshot()  # type: ignore[union-attr]
    assert actions(made) == ["CreateSnapshot", "CreateChild"]


def test_retries_are_counted_over_all_jobs() -> None:
    status = begun(SUSPENDED, retries=2, active_seconds=30, active_since=None)
    made = plan(observed(status, spec=spec({"retries": 5}), looked=True, snapshot=snapshot()), NOW)
    (create,) = made.actions
    assert (create.backoff_limit, create.retries_before) == (3, 2)  # type: ignore[union-attr]  # CreateChild
    again = plan(observed(status, child=child(retries_before=2, failed=1), pods=(running(),)), NOW)
    assert again.status is not None
    assert again.status.retries == 3


def test_active_time_is_counted_when_a_job_is_suspended() -> None:
    status = begun(condition("Suspended", "False", "Resumed", -20), active_seconds=100, active_since=at(-20))
    made = plan(observed(status, spec=spec(suspend=True), looked=True, snapshot=snapshot()), NOW)
    assert made.status is not None
    assert made.status.active_seconds == 120


def test_deadlines_are_appointments() -> None:
    seen = observed(begun(), spec=spec({"activeDeadlineSeconds": 100}), child=child(), pods=(running(),))
    assert plan(seen, NOW).requeue_after == 40.0


def test_progress_stands_in_the_status() -> None:
    progress = Progress(
        run_uid="u", pod_uid="p", stage="Training", step=199, total_steps=200, loss=0.123456, seconds_left=60
    )
    seen = observed(begun(), child=child(), pods=(running(),), reading=Reading(progress, NOW, stale=False))
    found = plan(seen, NOW).status
    assert found is not None
    assert found.progress is not None
    shown = found.progress.model_dump(exclude_none=True)
    assert shown == {
        "step": 199,
        "total_steps": 200,
        "percent": "99%",
        "stage": "Training",
        "loss": "0.1235",
        "estimated_end": at(60),
        "last_update_time": at(0),
    }
    silent = Reading(progress, NOW - timedelta(minutes=1), stale=True)
    later = plan(replace(seen, status=found, reading=silent), NOW).status
    assert later is not None
    assert later.progress is not None
    assert later.progress.stale is True
    assert later.phase == "Running", "a trainer that does not answer may well be training"


def test_figures_stand_in_the_status_from_the_first_judgement_to_the_published_one() -> None:
    said = Progress(run_uid="u", pod_uid="p", stage="Training", step=150, total_steps=200)
    figures = {"fidelity": 0.9375, "leak": 0.046875, "drift": 1.23456}
    judged = said.model_copy(update={"judgement": Judgement(step=100, figures=figures, best_step=50)})
    shown = JudgementStatus(step=100, best_step=50, figures={"fidelity": "0.9375", "leak": "0.04688", "drift": "1.235"})
    seen = observed(begun(), child=child(), pods=(running(),))
    status: FineTuneJobStatus | None = seen.status
    # not judged yet; judged; another attempt that begins anew; a trainer that is silent
    for reading, expected in (
        (Reading(said, NOW, stale=False), None),
        (Reading(judged, NOW, stale=False), shown),
        (Reading(said, NOW, stale=False), shown),
        (Reading(None, None, stale=True), shown),
    ):
        status = plan(replace(seen, status=status, reading=reading), NOW).status
        assert status is not None
        assert status.judgement == expected
    end = {"outcome": "Succeeded", "step": 200, "judgement": {"step": 50, "bestStep": 50, "figures": {"fidelity": 1}}}
    finished = child(complete=True, finished_at=at(-1))
    last = plan(observed(status, child=finished, pods=(ended(0, end),), looked=True), NOW).status
    assert last is not None
    assert last.judgement == JudgementStatus(step=50, best_step=50, figures={"fidelity": "1"})
    quiet = plan(observed(status, child=finished, pods=(ended(0),), looked=True), NOW).status
    assert quiet is not None
    assert quiet.judgement == shown, "the last that was heard of"


def test_the_engine_stands_in_the_status_and_the_next_one_when_it_ran_out_of_memory() -> None:
    said = Progress(run_uid="u", pod_uid="p", stage="Training", step=150, total_steps=200)
    first = EngineInUse(
        kind="Captured", does="Captured", why="a recorded step is the fastest", predicted_bytes=3 * 2**29
    )
    why = "Captured ran out of memory"
    then = EngineInUse(kind="Eager", does="Eager, activations computed twice", why=why, fell_from="Captured")
    seen = observed(begun(), child=child(), pods=(running(),))
    status: FineTuneJobStatus | None = seen.status
    shown = EngineStatus(
        kind="Captured", does="Captured", why="a recorded step is the fastest", predicted_memory="1.5Gi"
    )
    leaner = EngineStatus(kind="Eager", does="Eager, activations computed twice", why=why, fell_from="Captured")
    told: list[str] = []
    # not chosen yet; chosen; another one; another attempt, which has not chosen
    for engine, expected in ((None, None), (first, shown), (then, leaner), (None, leaner)):
        reading = Reading(said.model_copy(update={"engine": engine}), NOW, stale=False)
        made = plan(replace(seen, status=status, reading=reading), NOW)
        told += [news.message for news in made.announcements if news.reason == "EngineGivenUp"]
        status = made.status
        assert status is not None
        assert status.engine == expected
    assert told == ["Captured ran out of memory; steps are executed by Eager, activations computed twice"]


def test_the_kubelets_back_off_does_not_hide_the_error() -> None:
    first = pod(waiting_reason="ErrImagePull", waiting_message="manifest unknown")
    told = plan(observed(begun(), child=child(), pods=(first,)), NOW).status
    then = replace(first, waiting_reason="ImagePullBackOff", waiting_message='Back-off pulling image "trainer:1"')
    again = plan(observed(told, child=child(), pods=(then,)), NOW).status
    assert again == told


def test_a_status_that_only_its_job_remembers_is_filled_in() -> None:
    status = FineTuneJobStatus(resolved=ResolvedStatus(run_sha256=snapshot().digest))
    made = plan(observed(status, child=child(), looked=True, snapshot=snapshot()), NOW)
    assert made.status is not None
    assert made.status.method == "lora"
    assert made.status.start_time == child().created


def test_a_ttl_for_the_pods_alone_leaves_the_job_to_be_read() -> None:
    over = begun(condition("Succeeded", "True", "Published"), completion_time=at(-100))
    pods_only = spec({"ttlSecondsAfterFinished": 50, "deletionPolicy": "DeletePods"})
    finished = child(complete=True, finished_at=at(-100))
    assert actions(plan(observed(over, spec=pods_only, child=finished), NOW)) == ["DeleteChild"]
    assert plan(observed(over, spec=pods_only, child=replace(finished, deleting=True)), NOW) == Plan()
    assert plan(observed(over, spec=pods_only), NOW) == Plan(), "and nothing is made again"
