"""The operator on a real API server with a real Job controller: from a FineTuneJob to its Job, and to its end.

No kubelet: the test says what becomes of pods. The operator has the chart's rights and no others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from support.operating import SYSTEM, Operator, Place
from support.waiting import Object, eventually

URI = "s3://models/dog/"
RESULT = {
    "outcome": "Succeeded",
    "step": 40,
    "loss": 0.125,
    "uri": URI,
    "manifestUri": f"{URI}manifest.json",
    "manifestSha256": "a" * 64,
    "weights": ["lora/pytorch_lora_weights.safetensors"],
}


def conditions(job: Object) -> dict[str, Any]:
    status: Any = job.get("status") or {}
    return {c["type"]: c for c in status.get("conditions") or []}


def has(kind: str, status: str, reason: str) -> Callable[[Object], bool]:
    def holds(job: Object) -> bool:
        found = conditions(job).get(kind, {})
        return (found.get("status"), found.get("reason")) == (status, reason)

    return holds


def phase(name: str) -> Callable[[Object], bool]:
    return lambda job: (job.get("status") or {}).get("phase") == name


def test_children_are_ours_complete_and_admitted(place: Place) -> None:
    watched = place.submit("dog")
    job = place.job("dog")
    pod = place.pod("dog")  # the restricted standard lets it in
    found = watched.until(has("Accepted", "True", "Accepted"), seconds=15, what="acceptance")
    uid = found["metadata"]["uid"]
    resolved = found["status"]["resolved"]
    snapshot = place.core.read_namespaced_config_map(f"dog-{uid[:8]}", place.name)
    service = place.core.read_namespaced_service("dog", place.name)

    for child in (job, snapshot, service):
        (owner,) = child.metadata.owner_references
        assert (owner.uid, owner.controller, owner.block_owner_deletion) == (uid, True, True)
    digest = hashlib.sha256(snapshot.data["run.json"].encode()).hexdigest()
    environment = {e.name: e.value for e in pod.spec.containers[0].env}
    assert snapshot.immutable is True
    assert digest == resolved["runSha256"] == environment["FINETUNE_RUN_SHA256"]
    assert resolved["image"] == pod.spec.containers[0].image == "trainer.invalid/none:1"
    assert resolved["profile"] == place.name
    assert service.spec.cluster_ip == "None"
    assert pod.spec.automount_service_account_token is False
    assert "finalizers" not in found["metadata"], "deleting a job never waits for the operator"
    with pytest.raises(ApiException, match="immutable"):
        place.core.patch_namespaced_config_map(snapshot.metadata.name, place.name, {"data": {"run.json": "{}"}})


def test_success_is_reported_with_artifacts_and_events(place: Place) -> None:
    watched = place.submit("dog")
    pod = place.pod("dog")
    place.runs(pod)
    watched.until(phase("Running"), seconds=15, what="Running")
    place.ends(pod, 0, **RESULT)
    found = watched.until(phase("Succeeded"), seconds=30, what="success")

    status = found["status"]
    assert conditions(found)["Succeeded"]["reason"] == "Published"
    assert status["artifacts"]["manifestUri"] == f"{URI}manifest.json"
    assert status["artifacts"]["weights"] == RESULT["weights"]
    assert (status["progress"]["percent"], status["progress"]["loss"]) == ("100%", "0.125")
    assert [(a["podName"], a["exitCode"], a["reason"]) for a in status["attempts"]] == [
        (pod.metadata.name, 0, "Succeeded")
    ]
    eventually(lambda: expect_events(place, "dog", "Accepted", "Created", "Started", "Succeeded"), seconds=10)


def expect_events(place: Place, name: str, *reasons: str) -> None:
    found = [event.reason for event in place.events(name)]
    assert [found.count(reason) for reason in reasons] == [1] * len(reasons), found


def test_the_users_mistake_is_final_and_told_in_the_trainers_words(place: Place) -> None:
    watched = place.submit("dog")
    said = "spec.output.secretRef models has no AWS_ACCESS_KEY_ID; add the key"
    place.ends(place.pod("dog"), 78, outcome="BadConfiguration", message=said)
    found = watched.until(phase("Failed"), seconds=30, what="failure")
    failed = conditions(found)["Failed"]
    assert (failed["reason"], failed["message"]) == ("BadConfiguration", said)
    assert len(place.pods("dog")) == 1


def test_failures_use_up_retries(place: Place) -> None:
    watched = place.submit("dog", {"retries": 0})
    place.ends(place.pod("dog"), 1, outcome="Error", message="CUDA error")
    found = watched.until(phase("Failed"), seconds=30, what="failure")
    failed = conditions(found)["Failed"]
    assert failed["reason"] == "RetriesExhausted"
    assert "spec.runPolicy.retries is 0" in failed["message"]
    assert "CUDA error" in failed["message"]


def test_an_interruption_is_no_failure(place: Place) -> None:
    watched = place.submit("dog", {"retries": 0})
    first = place.pod("dog")
    place.ends(first, 75, outcome="Interrupted", step=20)
    second = place.pod("dog", other_than=first.metadata.uid)
    place.ends(second, 0, **RESULT, resumedFromStep=20)
    found = watched.until(phase("Succeeded"), seconds=30, what="success")
    assert [a["reason"] for a in found["status"]["attempts"]] == ["Interrupted", "Succeeded"]
    assert found["status"]["retries"] == 0


def test_progress_is_asked_for_and_shown(place: Place, operator: Operator) -> None:
    watched = place.submit("dog")
    pod = place.pod("dog")
    answer = {
        "runUid": pod.metadata.labels["finetune.dev/job-uid"],
        "podUid": pod.metadata.uid,
        "stage": "Training",
        "step": 30,
        "totalSteps": 40,
        "loss": 0.25,
        "imagesPerSecond": 12.5,
        "secondsLeft": 9.5,
    }

    class Trainer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", operator.progress_port), Trainer)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        place.runs(pod, ip="127.0.0.1")
        found = watched.until(lambda j: "progress" in (j.get("status") or {}), seconds=30, what="progress")
    finally:
        server.shutdown()
        server.server_close()
    progress = found["status"]["progress"]
    assert (progress["percent"], progress["loss"], progress["imagesPerSecond"]) == ("75%", "0.25", "12.5")
    assert progress["stage"] == "Training"
    assert progress["estimatedEnd"] > progress["lastUpdateTime"]


def test_suspend_frees_everything_and_resume_goes_on(place: Place) -> None:
    watched = place.submit("dog", {"retries": 5})
    first = place.job("dog")
    place.ends(place.pod("dog"), 1, outcome="Error", message="a hiccup")
    watched.until(lambda j: (j.get("status") or {}).get("retries") == 1, seconds=30, what="the first retry")
    place.edit("dog", suspend=True)
    found = watched.until(phase("Suspended"), seconds=30, what="suspension")
    assert place.pods("dog") == []
    with pytest.raises(ApiException, match="not found"):
        place.batch.read_namespaced_job("dog", place.name)
    assert found["status"]["activeSeconds"] >= 0

    place.edit("dog", suspend=False)
    second = place.job("dog")
    assert second.metadata.uid != first.metadata.uid
    assert second.spec.backoff_limit == 4, "what is left of the retries"
    place.ends(place.pod("dog"), 0, **RESULT)
    found = watched.until(phase("Succeeded"), seconds=30, what="success")
    assert [a["reason"] for a in found["status"]["attempts"]] == ["Error", "Succeeded"]


def test_retries_may_be_edited_while_it_runs(place: Place) -> None:
    place.submit("dog", {"retries": 1})
    place.job("dog")
    place.edit("dog", retries=7)
    eventually(lambda: expect_backoff_limit(place, 7), seconds=15)


def expect_backoff_limit(place: Place, value: int) -> None:
    assert place.batch.read_namespaced_job("dog", place.name).spec.backoff_limit == value


def test_a_finished_job_is_deleted_when_its_time_has_come(place: Place) -> None:
    watched = place.submit("dog", {"ttlSecondsAfterFinished": 2})
    place.ends(place.pod("dog"), 0, **RESULT)
    watched.until(phase("Succeeded"), seconds=30, what="success")
    eventually(lambda: expect_nothing_left(place), seconds=60)


def test_deletion_removes_all_it_owned(place: Place) -> None:
    place.submit("dog")
    place.pod("dog")
    place.delete("dog")
    eventually(lambda: expect_nothing_left(place), seconds=60)


def expect_nothing_left(place: Place) -> None:
    jobs = place.custom.list_namespaced_custom_object("finetune.dev", "v1alpha1", place.name, "finetunejobs")
    ours = {"label_selector": "app.kubernetes.io/managed-by=finetune-operator"}
    left = [
        *jobs["items"],
        *place.batch.list_namespaced_job(place.name, **ours).items,
        *place.core.list_namespaced_pod(place.name, **ours).items,
        *place.core.list_namespaced_service(place.name, **ours).items,
        *place.core.list_namespaced_config_map(place.name, **ours).items,
    ]
    assert left == []


def test_deadlines_end_a_job(place: Place) -> None:
    started = place.submit("dog", {"activeDeadlineSeconds": 3})
    place.runs(place.pod("dog"))
    never = place.submit("cat", {"startDeadlineSeconds": 5})
    found = started.until(phase("Failed"), seconds=30, what="the deadline")
    assert conditions(found)["Failed"]["reason"] == "DeadlineExceeded"
    found = never.until(phase("Failed"), seconds=30, what="the start deadline")
    assert conditions(found)["Failed"]["reason"] == "StartDeadlineExceeded"
    for name in ("dog", "cat"):
        eventually(lambda name=name: expect_no_job(place, name), seconds=30)


def expect_no_job(place: Place, name: str) -> None:
    jobs: list[client.V1Job] = place.batch.list_namespaced_job(place.name).items
    assert name not in [job.metadata.name for job in jobs]


def test_killed_at_any_moment_it_goes_on_with_the_same_job(place: Place, operator: Operator) -> None:
    before = place.submit("before")
    job = place.job("before")
    operator.kill()
    meanwhile = place.submit("meanwhile")
    pod = place.pod("before")
    place.ends(pod, 0, **RESULT)
    operator.start()
    found = before.until(phase("Succeeded"), seconds=60, what="success under the second operator")
    assert [a["podName"] for a in found["status"]["attempts"]] == [pod.metadata.name]
    assert place.job("before").metadata.uid == job.metadata.uid
    meanwhile.until(has("Accepted", "True", "Accepted"), seconds=30, what="the job made without an operator")
    names = sorted(j.metadata.name for j in place.batch.list_namespaced_job(place.name).items)
    assert names == ["before", "meanwhile"]
    assert [e.reason for e in place.events("before")].count("Accepted") == 1


def test_who_loses_the_lease_stands_by_and_comes_back(place: Place, operator: Operator) -> None:
    """Without a restart, and without a write in between."""
    leases = client.CoordinationV1Api(place.api)
    thief = {"holderIdentity": "thief", "renewTime": "2026-01-01T00:00:00.000000Z"}
    leases.patch_namespaced_lease("finetune-operator", SYSTEM, {"spec": thief})
    eventually(lambda: expect_leader(operator, "0.0"), seconds=30)
    watched = place.submit("dog")
    assert operator.get("/readyz") == "ok"
    assert operator.get("/healthz") == "ok"
    with pytest.raises(ApiException, match="not found"):
        place.batch.read_namespaced_job("dog", place.name)
    eventually(lambda: expect_leader(operator, "1.0"), seconds=40)
    watched.until(has("Accepted", "True", "Accepted"), seconds=30, what="the job made without a leader")


def expect_leader(operator: Operator, value: str) -> None:
    assert f"finetune_operator_leader {value}" in operator.get("/metrics").splitlines()


def test_the_chart_grants_every_right_that_was_needed(operator: Operator) -> None:
    metrics = operator.get("/metrics")
    refused = [line for line in metrics.splitlines() if 'code="403"' in line and line.startswith("finetune_operator")]
    creations = [line for line in refused if 'verb="create"' in line]  # quotas and admission answer 403 too
    assert [line for line in refused if line not in creations] == []
    assert operator.get("/healthz") == "ok"
