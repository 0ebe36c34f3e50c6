"""plan() by tables: what was observed → what is done, and what is said."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from finetune_api.progress import Progress
from finetune_api.status import FineTuneJobStatus, ResolvedStatus
from finetune_operator.policies.readiness import no
from finetune_operator.progress.reading import Reading
from finetune_operator.projections import Warned
from finetune_operator.reconcile.actions import Plan
from finetune_operator.reconcile.observed import Observed
from finetune_operator.reconcile.plan import plan
from support.observations import (
    KEY,
    NOW,
    at,
    begun,
    child,
    condition,
    ended,
    observed,
    pod,
    profile,
    running,
    snapshot,
    spec,
)

RESULT = {"outcome": "Succeeded", "step": 40, "loss": 0.5, "uri": "s3://models/dog/"}
SUSPENDED = condition("Suspended", "True", "Suspended", -30)


def actions(made: Plan) -> list[str]:
    return [type(action).__name__ for action in made.actions]


def said(made: Plan) -> dict[str, tuple[str, str]]:
    """Condition → (status, reason)."""
    assert made.status is not None
    return {c.type: (c.status, c.reason) for c in made.status.conditions or []}


@dataclass
class Case:
    name: str
    seen: Observed
    phase: str
    actions: list[str] = field(default_factory=list)
    conditions: dict[str, tuple[str, str]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.name


def warning(message: str, seconds: float = -20) -> Warned:
    return Warned(KEY, "job-uid", "FailedCreate", message, at(seconds))


CASES = [
    Case(
        "a new job gets its snapshot and its Job",
        observed(),
        "Starting",
        ["CreateSnapshot", "CreateChild"],
        {"Accepted": ("True", "Accepted"), "PodsReady": ("False", "Starting"), "Succeeded": ("Unknown", "InProgress")},
        ["Accepted", "Created"],
    ),
    Case(
        "an unknown profile is waited for",
        observed(spec=spec(profileName="gpu")),
        "Pending",
        [],
        {"Accepted": ("False", "ProfileNotFound"), "PodsReady": ("False", "NotAccepted")},
        ["ProfileNotFound"],
    ),
    Case(
        "a job that is created suspended is accepted, no more",
        observed(spec=spec(suspend=True)),
        "Suspended",
        ["CreateSnapshot"],
        {"Accepted": ("True", "Accepted"), "Suspended": ("True", "Suspended")},
        ["Accepted", "Suspended"],
    ),
    Case(
        "a refused Job is said and no start is claimed",
        observed(refusal=no("NameConflict", "Job dog exists")),
        "Pending",
        ["CreateSnapshot"],
        {"PodsReady": ("False", "NameConflict")},
        ["Accepted", "NameConflict"],
    ),
    Case("a running pod", observed(begun(), child=child(), pods=(running(),)), "Running", [], {}, ["Started"]),
    Case(
        "no pod for want of quota",
        observed(begun(), child=child(), warning=warning("pods is forbidden: exceeded quota: small")),
        "Pending",
        [],
        {"PodsReady": ("False", "QuotaExceeded")},
        ["QuotaExceeded"],
    ),
    Case(
        "a warning from before the present pod is history",
        observed(begun(), child=child(), pods=(pod(),), warning=warning("exceeded quota: small", -58)),
        "Starting",
        [],
        {"PodsReady": ("False", "Starting")},
    ),
    Case(
        "an interrupted pod is no failure",
        observed(begun(), child=child(), pods=(ended(75, {"outcome": "Interrupted"}),)),
        "Starting",
        [],
        {"PodsReady": ("False", "Restarting"), "Failed": ("False", "InProgress")},
        ["Started", "Interrupted"],
    ),
    Case(
        "a pod that has ended well is no restart while the Job has yet to say so",
        observed(begun(), child=child(), pods=(ended(0, RESULT),)),
        "Running",
        [],
        {"PodsReady": ("True", "Running"), "Succeeded": ("Unknown", "InProgress")},
        ["Started"],
    ),
    Case(
        "success with a result",
        observed(begun(), child=child(complete=True, finished_at=at(-1)), pods=(ended(0, RESULT),)),
        "Succeeded",
        [],
        {"Succeeded": ("True", "Published"), "Failed": ("False", "Succeeded"), "PodsReady": ("False", "Finished")},
        ["Started", "Succeeded"],
    ),
    Case(
        "success whose message was lost",
        observed(begun(), child=child(complete=True, finished_at=at(-1)), pods=(ended(0),)),
        "Succeeded",
        [],
        {"Succeeded": ("True", "ResultUnreported")},
        ["Started", "Succeeded"],
    ),
    Case(
        "success once it is certain that no pod is left",
        observed(begun(), child=child(complete=True, finished_at=at(-1)), looked=True, snapshot=snapshot()),
        "Succeeded",
        [],
        {"Succeeded": ("True", "ResultUnreported")},
        ["Succeeded"],
    ),
    Case(
        "the user's data",
        observed(
            begun(),
            child=child(failure="PodFailurePolicy", finished_at=at(-1)),
            pods=(ended(65, {"outcome": "BadData", "message": "spec.dataset.uri is empty"}),),
        ),
        "Failed",
        [],
        {"Failed": ("True", "BadData"), "Succeeded": ("False", "BadData")},
        ["Started", "AttemptFailed", "Failed"],
    ),
    Case(
        "retries used up",
        observed(begun(), child=child(failure="BackoffLimitExceeded", failed=4, finished_at=at(-1)), pods=(ended(1),)),
        "Failed",
        [],
        {"Failed": ("True", "RetriesExhausted")},
        ["Started", "AttemptFailed", "Failed"],
    ),
    Case(
        "suspension deletes the Job",
        observed(begun(), spec=spec(suspend=True), child=child(), pods=(running(),)),
        "Running",
        ["DeleteChild"],
        {"Suspended": ("False", "Suspending")},
        ["Started"],
    ),
    Case(
        "suspension waits for pods",
        observed(begun(), spec=spec(suspend=True), looked=True, snapshot=snapshot(), pods=(running(),)),
        "Running",
        [],
        {"Suspended": ("False", "Suspending")},
        ["Started"],
    ),
    Case(
        "suspended when nothing is left",
        observed(begun(), spec=spec(suspend=True), looked=True, snapshot=snapshot()),
        "Suspended",
        [],
        {"Suspended": ("True", "Suspended")},
        ["Suspended"],
    ),
    Case(
        "resumption makes a new Job from the snapshot",
        observed(begun(SUSPENDED, retries=2, active_seconds=30, active_since=None), looked=True, snapshot=snapshot()),
        "Starting",
        ["CreateChild"],
        {"Suspended": ("False", "Resumed")},
        ["Created", "Resumed"],
    ),
    Case(
        "a lost snapshot that can be made again",
        observed(begun(), looked=True),
        "Starting",
        ["CreateSnapshot", "CreateChild"],
        {"Accepted": ("True", "Accepted")},
        ["Created"],
    ),
    Case(
        "a lost snapshot that cannot",
        observed(begun(), looked=True, profiles={"tiny": profile(default=True, defaults={"training": {"steps": 9}})}),
        "Failed",
        [],
        {"Failed": ("True", "SnapshotLost")},
        ["Failed"],
    ),
    Case(
        "a Job without a status: its snapshot is trusted by the digest on the Job",
        observed(child=child(), looked=True, snapshot=snapshot()),
        "Starting",
        [],
        {"Accepted": ("True", "Accepted")},
        ["Accepted"],
    ),
    Case(
        "the deadline, suspensions left out",
        observed(
            begun(condition("Suspended", "False", "Resumed", -10), active_seconds=95, active_since=at(-10)),
            spec=spec({"activeDeadlineSeconds": 100}),
            child=child(),
            pods=(running(),),
            looked=True,
            snapshot=snapshot(),
        ),
        "Failed",
        ["DeleteChild"],
        {"Failed": ("True", "DeadlineExceeded")},
        ["Started", "Failed"],
    ),
    Case(
        "the profile's deadline holds where the job names none",
        observed(begun(), child=child(longest_deadline=60), pods=(running(),), looked=True, snapshot=snapshot()),
        "Failed",
        ["DeleteChild"],
        {"Failed": ("True", "DeadlineExceeded")},
        ["Started", "Failed"],
    ),
    Case(
        "the start deadline",
        observed(
            begun(),
            spec=spec({"startDeadlineSeconds": 60}),
            child=child(),
            pods=(pod(waiting_reason="ErrImagePull", waiting_message="manifest unknown"),),
            looked=True,
            snapshot=snapshot(),
        ),
        "Failed",
        ["DeleteChild"],
        {"Failed": ("True", "StartDeadlineExceeded")},
        ["Failed"],
    ),
    Case(
        "the start deadline of a job that was never accepted",
        observed(spec=spec({"startDeadlineSeconds": 60}, profileName="gpu"), looked=True),
        "Failed",
        [],
        {"Failed": ("True", "StartDeadlineExceeded"), "Accepted": ("False", "ProfileNotFound")},
        ["ProfileNotFound", "Failed"],
    ),
    Case(
        "edited retries reach the Job",
        observed(begun(), spec=spec({"retries": 7}), child=child(retries_before=2), pods=(running(),)),
        "Running",
        ["SetBackoffLimit"],
        {},
        ["Started"],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_plan(case: Case) -> None:
    made = plan(case.seen, NOW)
    assert made.status is not None
    assert made.status.phase == case.phase
    assert actions(made) == case.actions
    assert case.conditions.items() <= said(made).items()
    assert [a.reason for a in made.announcements] == case.events
    assert {c.observed_generation for c in made.status.conditions or []} == {1}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_plan_that_was_carried_out_is_quiet(case: Case) -> None:
    """With its status recorded and nothing new, the next plan says the same and announces nothing twice."""
    made = plan(case.seen, NOW)
    again = plan(replace(case.seen, status=made.status, looked=True, snapshot=case.seen.snapshot or snapshot()), NOW)
    if again.status is not None:
        assert again.status.phase == made.status.phase if made.status else False
    repeated = {a.reason for a in again.announcements} - {"Created"}
    assert repeated == set()


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
