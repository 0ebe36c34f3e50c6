"""What an operator may have observed, for tests of its decisions: one job, its Job and pods, in a few words each."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.status import Condition, FineTuneJobStatus, ResolvedStatus
from finetune_api.training_run import RunIdentity
from finetune_operator.policies.acceptance import Refused, accept
from finetune_operator.projections import ChildState, Key, PodState, ProfileState
from finetune_operator.reconcile.actions import Plan
from finetune_operator.reconcile.observed import Observed
from finetune_operator.specs.configmap import Snapshot

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
KEY = Key("art", "dog")
IDENTITY = RunIdentity(name="dog", namespace="art", uid=UID)
IMAGE = "trainer:1"


def at(seconds: float) -> str:
    """`seconds` from NOW, as Kubernetes writes it."""
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def spec(run_policy: dict[str, Any] | None = None, **more: object) -> dict[str, Any]:
    """spec of a small LoRA job."""
    whole: dict[str, Any] = {
        "baseModel": {"uri": "builtin://tiny-shapes"},
        "method": {"lora": {"prompt": "a photo of sks dog"}},
        "dataset": {"uri": "s3://pictures/dog/"},
        "output": {"uri": "s3://models/dog/", "secretRef": {"name": "models"}},
        **more,
    }
    return whole if run_policy is None else {**whole, "runPolicy": run_policy}


def profile(name: str = "tiny", default: bool = False, **more: object) -> ProfileState:
    whole = {"image": IMAGE, **({"isDefault": True} if default else {}), **more}
    return ProfileState(name, f"uid-{name}", 1, default, json.dumps(whole).encode())


def snapshot(of: dict[str, Any] | None = None, profiles: tuple[ProfileState, ...] = ()) -> Snapshot:
    """The snapshot of a job that is accepted."""
    found = accept(of or spec(), {p.name: p for p in profiles or (profile(default=True),)}, IDENTITY, "")
    assert not isinstance(found, Refused), found
    return found


def child(**changes: object) -> ChildState:
    """A Job that has just been made."""
    base = ChildState(
        key=KEY,
        uid="job-uid",
        owner_uid=UID,
        version=5,
        created=at(-60),
        deleting=False,
        backoff_limit=3,
        retries_before=0,
        suspended=False,
        queue="",
        nodes=1,
        started_at=None,
        node_lost="ForceDelete",
        longest_deadline=None,
        run_digest=snapshot().digest,
        failed=0,
        complete=False,
        failure=None,
        failure_message="",
        finished_at=None,
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # tests name fields that exist


def pod(**changes: object) -> PodState:
    """A pod that waits to be started."""
    base = PodState(
        key=Key("art", "dog-abcde"),
        job=KEY,
        owner_uid=UID,
        job_uid="job-uid",
        index=0,
        uid="pod-1",
        version=7,
        created=at(-55),
        deletion_at=None,
        phase="Pending",
        ip="",
        node="node-1",
        image=IMAGE,
        unschedulable="",
        disruption="",
        pod_reason="",
        waiting_reason="",
        waiting_message="",
        running=False,
        exit_code=None,
        exit_reason="",
        termination_message="",
        finished_at=None,
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # tests name fields that exist


def running(**changes: object) -> PodState:
    return pod(**{"phase": "Running", "running": True, "ip": "10.0.0.9", **changes})


def ended(code: int, result: dict[str, Any] | None = None, **changes: object) -> PodState:
    """A pod whose container ended; with a termination message if there is a result."""
    message = json.dumps({"runUid": UID, **result}) if result is not None else ""
    phase = "Failed" if code else "Succeeded"
    return pod(**{"phase": phase, "exit_code": code, "termination_message": message, "finished_at": at(-5), **changes})


def condition(kind: str, status: str, reason: str, since: float = -60, message: str = "") -> Condition:
    return Condition(
        type=kind, status=status, reason=reason, message=message, last_transition_time=at(since), observed_generation=1
    )


def begun(*conditions: Condition, **more: object) -> FineTuneJobStatus:
    """Status of a job that was accepted and whose Job was made a minute ago."""
    given = {c.type: c for c in conditions}
    usual = [
        condition("Accepted", "True", "Accepted", message="the job can be carried out"),
        condition("PodsReady", "False", "Starting"),
        condition("Suspended", "False", "NotSuspended"),
        condition("Succeeded", "Unknown", "InProgress"),
        condition("Failed", "False", "InProgress"),
    ]
    made = snapshot()
    resolved = ResolvedStatus(profile="tiny", run_sha256=made.digest, profile_sha256=made.profile_digest)
    start = {"start_time": at(-60), "active_since": at(-60)}
    fields: dict[str, Any] = {**start, "resolved": resolved, "retries": 0, **more}
    return FineTuneJobStatus(conditions=[given.get(c.type, c) for c in usual], **fields)


def observed(status: FineTuneJobStatus | None = None, **changes: object) -> Observed:
    """A job that was created a minute ago, with a default profile."""
    base = Observed(
        identity=IDENTITY,
        generation=1,
        created=NOW - timedelta(seconds=60),
        deleting=False,
        spec=spec(),
        status=status or FineTuneJobStatus(),
        profiles={"tiny": profile(default=True)},
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # tests name fields that exist


def actions(made: Plan) -> list[str]:
    """Names of what is to be done, in order."""
    return [type(action).__name__ for action in made.actions]
