"""plan() by tables: what was observed → what is done, and what is said."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from finetune_operator.policies.readiness import no
from finetune_operator.projections import Warned
from finetune_operator.reconcile.actions import Plan
from finetune_operator.reconcile.observed import Observed
from finetune_operator.reconcile.plan import plan
from support.observations import (
    KEY,
    NOW,
    actions,
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
