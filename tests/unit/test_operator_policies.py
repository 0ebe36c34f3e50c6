"""The rules of a job's life, one by one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_api.exits import ExitCode
from finetune_api.status import AttemptStatus
from finetune_operator.policies import outcome as outcomes
from finetune_operator.policies import retry
from finetune_operator.policies.acceptance import Refused, accept
from finetune_operator.policies.activity import Activity, began, effective_deadline
from finetune_operator.policies.attempts import KEPT, attempts_of, result_of
from finetune_operator.policies.exit_codes import pod_failure_policy, reason_of
from finetune_operator.policies.readiness import readiness
from finetune_operator.policies.start_deadline import seconds_to_start
from finetune_operator.policies.ttl import seconds_to_deletion
from finetune_operator.projections import PodState, Warned, gone
from finetune_operator.specs.configmap import Snapshot
from support.observations import (
    IDENTITY,
    IMAGE,
    KEY,
    NOW,
    UID,
    at,
    child,
    ended,
    pod,
    profile,
    running,
    spec,
)


def test_every_exit_code_has_its_place_in_the_jobs_rules() -> None:
    """The table of control-plane decisions: interruptions are free, users' mistakes final, the rest counts."""
    rules = pod_failure_policy("trainer")["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore", "FailJob"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[1]["onExitCodes"] == {"containerName": "trainer", "operator": "In", "values": [75, 76]}
    assert rules[2]["onExitCodes"] == {"containerName": "trainer", "operator": "In", "values": [65, 78]}
    named = set(rules[1]["onExitCodes"]["values"]) | set(rules[2]["onExitCodes"]["values"])
    assert named == {int(code) for code in ExitCode} - {ExitCode.DONE, ExitCode.ERROR}
    assert [reason_of(code) for code in (0, 1, 65, 75, 76, 78, 137)] == [
        "Succeeded",
        "Error",
        "BadData",
        "Interrupted",
        "PeerLost",
        "BadConfiguration",
        "Error",
    ]


@pytest.mark.parametrize(
    ("made", "reason", "says"),
    [
        (accept(spec(profileName="gpu"), {"tiny": profile()}, IDENTITY, ""), "ProfileNotFound", "there are: tiny"),
        (
            accept(spec(), {n: profile(n, default=True) for n in ("a", "b")}, IDENTITY, ""),
            "AmbiguousProfile",
            "(a, b)",
        ),
        (accept(spec(), {}, IDENTITY, ""), "NoImage", "spec.profileName"),
        (accept(spec(), {"tiny": profile(default=True, image="")}, IDENTITY, ""), "InvalidProfile", "spec.image"),
        (accept(spec(training={"steps": 0}), {}, IDENTITY, IMAGE), "InvalidSpec", "spec.training.steps"),
        (
            accept(spec(dataset={"uri": "file:///home/me"}), {}, IDENTITY, IMAGE),
            "InvalidSpec",
            "spec.dataset.uri is file:///home/me",
        ),
        (
            accept(
                spec({"activeDeadlineSeconds": 9}),
                {"tiny": profile(default=True, limits={"maxActiveDeadlineSeconds": 8})},
                IDENTITY,
                IMAGE,
            ),
            "InvalidSpec",
            "spec.runPolicy.activeDeadlineSeconds is 9, FineTuneProfile tiny allows at most 8",
        ),
        (
            accept(spec(serviceAccountName="root"), {"tiny": profile(default=True)}, IDENTITY, IMAGE),
            "InvalidSpec",
            "spec.serviceAccountName is root",
        ),
    ],
)
def test_what_cannot_be_carried_out_is_refused_with_its_field(made: Snapshot | Refused, reason: str, says: str) -> None:
    assert isinstance(made, Refused)
    assert made.reason == reason
    assert says in made.message


def test_the_operators_image_serves_where_no_profile_names_one() -> None:
    made = accept(spec(), {}, IDENTITY, IMAGE)
    assert isinstance(made, Snapshot)
    assert made.profile.image == IMAGE
    assert made.profile_name == ""


def test_a_named_profile_wins_over_the_default() -> None:
    profiles = {"a": profile("a", default=True), "b": profile("b", image="other:2")}
    made = accept(spec(profileName="b"), profiles, IDENTITY, "")
    assert isinstance(made, Snapshot)
    assert (made.profile_name, made.profile.image) == ("b", "other:2")


@pytest.mark.parametrize(
    ("message", "usable"),
    [
        (f'{{"runUid": "{UID}", "outcome": "Succeeded"}}', True),
        ('{"runUid": "another-job", "outcome": "Succeeded"}', False),
        (f'{{"runUid": "{UID}", "outcome": "Splendid"}}', False),
        (f'{{"runUid": "{UID}", "outcome": "Succeeded", "script": "rm"}}', False),
        (f'{{"runUid": "{UID}", "outcome": "Succeeded", "loss": NaN}}', False),
        (f'{{"runUid": "{UID}", "outcome": "Error", "message": "{"x" * 5000}"}}', False),
        ("Segmentation fault", False),
        ("", False),
    ],
)
def test_a_termination_message_is_checked_before_it_is_believed(message: str, usable: bool) -> None:
    assert (result_of(pod(termination_message=message), UID) is not None) is usable


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (running(), None),
        (ended(0), "Succeeded"),
        (ended(75), "Interrupted"),
        (ended(137, exit_reason="OOMKilled"), "OOMKilled"),
        (ended(137, disruption="EvictionByEvictionAPI"), "EvictionByEvictionAPI"),
        (ended(75, disruption="PreemptionByScheduler"), "Interrupted"),
        (pod(phase="Failed", pod_reason="Evicted"), "Evicted"),
        (gone(running()), "Deleted"),
    ],
)
def test_how_an_attempt_ended(seen: PodState, reason: str | None) -> None:
    (attempt,) = attempts_of([], [seen], UID)
    assert attempt.reason == reason


def test_a_pod_that_never_began_is_no_attempt() -> None:
    assert attempts_of([], [pod(), gone(pod(uid="pod-2"))], UID) == []


def test_attempts_outlive_their_pods_and_are_bounded() -> None:
    recorded = [AttemptStatus(pod_uid=f"old-{i}", started_at=at(-1000 + i), reason="Error") for i in range(KEPT)]
    unfinished = AttemptStatus(pod_uid="vanished", started_at=at(-100))
    found = attempts_of([*recorded, unfinished], [running()], UID)
    assert len(found) == KEPT
    assert [(a.pod_uid, a.reason) for a in found[-2:]] == [("vanished", "Lost"), ("pod-1", None)]
    assert found[0].pod_uid == "old-2"


def test_an_attempt_that_was_told_keeps_its_end() -> None:
    (told,) = attempts_of([], [ended(78, {"outcome": "BadConfiguration", "message": "no key"})], UID)
    assert attempts_of([told], [], UID) == [told]
    assert told.message == "no key"


def outcome(failure: str, failure_message: str = "", attempts: list[AttemptStatus] | None = None) -> object:
    over = child(failure=failure, failure_message=failure_message, failed=4)
    return outcomes.outcome(over, attempts or [], None, retries=3, used=4)


def test_why_a_job_failed() -> None:
    oom = AttemptStatus(pod_uid="p", pod_name="dog-x", exit_code=137, reason="OOMKilled")
    exhausted = outcome("BackoffLimitExceeded", attempts=[oom])
    assert isinstance(exhausted, outcomes.Failed)
    assert exhausted.reason == "RetriesExhausted"
    for words in ("4 attempts failed", "spec.runPolicy.retries is 3", "exit code 137", "more memory"):
        assert words in exhausted.message
    silent = outcome("PodFailurePolicy", "Container trainer for pod art/dog-x failed with exit code 78 matching …")
    assert isinstance(silent, outcomes.Failed)
    assert (silent.reason, "left no message" in silent.message) == ("BadConfiguration", True)
    assert outcome("SomethingNew", "why") == outcomes.Failed("JobFailed", "SomethingNew: why")
    assert outcomes.outcome(child(), [], None, 3, 0) is None


def test_retries_are_shared_by_all_jobs() -> None:
    assert [retry.left(3, used) for used in (0, 2, 3, 9)] == [3, 1, 0, 0]
    assert retry.used(child(retries_before=2, failed=1), 1) == 3
    assert retry.used(None, 2) == 2
    assert retry.used(child(), 2) == 2, "a Job that memory shows too young takes nothing back"
    assert retry.wanted_backoff_limit(5, child(retries_before=2)) == 3


def test_active_time_leaves_out_what_was_suspended_or_queued() -> None:
    ago = {seconds: NOW - timedelta(seconds=seconds) for seconds in (100, 60, 10)}
    first = Activity().goes_on(ago[100])
    assert first.goes_on(ago[60]) == first, "it does not begin twice"
    stopped = first.rests(ago[60])
    assert (stopped.total(NOW), stopped.rests(NOW)) == (40, stopped)
    assert stopped.goes_on(ago[10]).total(NOW) == 50


def test_a_queued_job_is_active_from_its_admission_on() -> None:
    assert began(child(), NOW) == NOW - timedelta(seconds=60)
    queued = child(queue="gpus")
    assert began(queued, NOW) == NOW, "admitted a moment ago: the Job controller has not noted it yet"
    assert began(replace(queued, started_at=at(-5)), NOW) == NOW - timedelta(seconds=5)


def test_deadlines() -> None:
    assert [effective_deadline(*pair) for pair in ((None, None), (5, None), (None, 7), (9, 7))] == [None, 5, 7, 7]
    ago = NOW - timedelta(seconds=10)
    assert seconds_to_start(None, ago, False, NOW) is None
    assert seconds_to_start(15, ago, True, NOW) is None
    assert seconds_to_start(15, ago, False, NOW) == 5
    assert seconds_to_deletion(None, ago, NOW) is None
    assert seconds_to_deletion(15, None, NOW) is None
    assert seconds_to_deletion(4, ago, NOW) == -6


def warning(message: str) -> Warned:
    return Warned(KEY, "job-uid", "FailedCreate", f"Error creating: {message}", at(-1))


@pytest.mark.parametrize(
    ("pods", "told", "mount", "reason", "says"),
    [
        ([], None, "", "Starting", "its pod is to come"),
        ([], warning("exceeded quota: small, requested: …"), "", "QuotaExceeded", "exceeded quota: small"),
        ([], warning("failed quota: small: must specify limits.memory"), "", "QuotaExceeded", "must specify"),
        ([], warning('violates PodSecurity "restricted:latest"'), "", "PodRejected", "violates PodSecurity"),
        ([], warning('serviceaccount "robot" not found'), "", "ConfigError", 'ServiceAccount "robot"'),
        ([pod(unschedulable="0/3 nodes are available.")], None, "", "Unschedulable", "0/3 nodes are available."),
        (
            [pod(unschedulable='persistentvolumeclaim "cache" not found')],
            None,
            "",
            "ConfigError",
            'PersistentVolumeClaim "cache" not found: create it in namespace art',
        ),
        ([pod(waiting_reason="ErrImagePull", waiting_message="denied")], None, "", "ImagePullFailed", IMAGE),
        ([pod(waiting_reason="CreateContainerConfigError", waiting_message="bad")], None, "", "ConfigError", "bad"),
        ([pod()], None, "MountVolume.SetUp failed", "ConfigError", "MountVolume.SetUp failed"),
        ([running(deletion_at=at(60))], None, "", "Interrupted", "being stopped"),
        ([ended(75)], None, "", "Restarting", "exit code 75"),
        ([ended(75), pod(uid="pod-2")], None, "", "Starting", "being started"),
    ],
)
def test_why_nothing_runs(pods: list[PodState], told: Warned | None, mount: str, reason: str, says: str) -> None:
    found = readiness(pods, told, mount)
    assert (found.status, found.reason) == ("False", reason)
    assert says in found.message


def test_something_runs() -> None:
    assert readiness([ended(1), running(uid="pod-2")], warning("old"), "").status == "True"
