"""Jobs that queue, on a real API server with the real Job controller, and a stand-in that does what Kueue does."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from support import control_plane
from support.kueue import MANAGER, PENDING, PREEMPTED, PRIORITY_LABEL, QUEUE_LABEL, Flavor, Kueue, owners_of
from support.operating import ChartRights, Operator, Place, at_work, placed
from support.waiting import eventually
from test_operator_lifecycle import RESULT, conditions, has, phase

QUEUED = {"queueName": "team-a", "priorityClass": "high"}
SPOT = Flavor(
    node_selector={"cloud.example/kind": "spot"},
    tolerations=({"key": "cloud.example/spot", "operator": "Exists", "effect": "NoSchedule"},),
    labels={"kueue.x-k8s.io/local-queue-name": "team-a"},
)
KUEUES_OWN = (
    ("spec", "suspend"),
    ("spec", "template", "spec", "nodeSelector"),
    ("spec", "template", "spec", "tolerations"),
    ("spec", "template", "metadata", "labels", "kueue.x-k8s.io/podset"),
    ("spec", "template", "metadata", "labels", "kueue.x-k8s.io/local-queue-name"),
)


CLASS = "queueing"


@pytest.fixture(scope="module")
def operator(api_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """One that reads Kueue's Workloads, as the chart's `kueue.enabled` makes it; it serves the jobs of its class."""
    folder = tmp_path_factory.mktemp("queueing")
    rights = ChartRights(api_server, folder, CLASS, operatorClass=CLASS, **{"kueue.enabled": "true"})
    settings = rights.environment | {"FINETUNE_OPERATOR_KUEUE": "true"}
    with at_work(Operator(rights.path, folder, control_plane.free_port(), settings)) as running:
        yield running


@pytest.fixture
def place(api_server: Path, operator: Operator) -> Iterator[Place]:
    with placed(api_server, f"{CLASS}-{secrets.token_hex(4)}", operator_class=CLASS) as found:
        yield found


@pytest.fixture
def kueue(place: Place) -> Iterator[Kueue]:
    Kueue.install(place.api)
    with Kueue(place.api, place.name) as running:
        yield running


def child(place: Place) -> dict[str, Any]:
    """The Job as it is in JSON."""
    return dict(place.api.sanitize_for_serialization(place.job("dog")))


def template(place: Place) -> Any:
    return child(place)["spec"]["template"]


def active_pods(place: Place) -> list[str]:
    """Names of the pods that have neither ended nor been told to."""
    live = [pod for pod in place.pods("dog") if pod.status.phase in ("Pending", "Running")]
    return [pod.metadata.name for pod in live if not pod.metadata.deletion_timestamp]


def test_a_queued_job_is_made_suspended_and_says_why_it_waits(place: Place, kueue: Kueue) -> None:
    watched = place.submit("dog", run_policy=QUEUED)
    job = place.job("dog")
    assert job.spec.suspend is True
    assert job.metadata.labels[QUEUE_LABEL] == "team-a"
    assert job.metadata.labels[PRIORITY_LABEL] == "high"
    waiting = watched.until(
        lambda j: PENDING in conditions(j)["PodsReady"]["message"], seconds=30, what="Kueue's own words"
    )
    assert waiting["status"]["phase"] == "Queued"
    assert conditions(waiting)["PodsReady"]["reason"] == "Queued"
    assert '"team-a"' in conditions(waiting)["PodsReady"]["message"]
    workload = kueue.workload("dog")
    assert (workload["spec"]["queueName"], workload["spec"]["priorityClassName"]) == ("team-a", "high")
    assert not place.pods("dog")
    assert not kueue.unsuspended


def test_admitted_evicted_and_admitted_again(place: Place, kueue: Kueue) -> None:
    """One Job throughout; what Kueue writes stays as Kueue wrote it."""
    watched = place.submit("dog", run_policy={**QUEUED, "retries": 2})
    made = child(place)
    before = template(place)
    kueue.admit("dog", SPOT)
    first = place.pod("dog")
    assert first.spec.node_selector["cloud.example/kind"] == "spot"
    assert any(t.key == "cloud.example/spot" for t in first.spec.tolerations)
    assert first.metadata.labels["kueue.x-k8s.io/podset"] == "main"
    place.runs(first)
    watched.until(phase("Running"), seconds=30, what="running")
    for path in KUEUES_OWN:
        assert owners_of(child(place), path) == {MANAGER}, path

    kueue.evict("dog")
    # the fake kubelet's part: the trainer saves its state and leaves
    place.ends(first, 75, outcome="Interrupted", step=40)
    stopped = watched.until(
        lambda j: has("PodsReady", "False", "Preempted")(j) and j["status"].get("interruptions") == 1,
        seconds=30,
        what="preemption",
    )
    assert stopped["status"]["phase"] == "Queued"
    watched.until(lambda j: PREEMPTED in conditions(j)["PodsReady"]["message"], seconds=30, what="Kueue's own words")
    eventually(lambda: _is(template(place), before), seconds=20)
    eventually(lambda: _is(active_pods(place), []), seconds=20)
    assert child(place)["metadata"]["uid"] == made["metadata"]["uid"]
    assert owners_of(child(place), ("spec", "suspend")) == {MANAGER}

    kueue.admit("dog", SPOT)
    second = place.pod("dog", other_than=first.metadata.uid)
    place.runs(second)
    watched.until(phase("Running"), seconds=30, what="running again")
    place.ends(second, 0, **RESULT)
    done = watched.until(phase("Succeeded"), seconds=30, what="success")
    assert done["status"].get("retries", 0) == 0
    assert child(place)["metadata"]["uid"] == made["metadata"]["uid"]
    assert not kueue.unsuspended, "nobody but Kueue starts a queued Job"
    assert sorted(a["exitCode"] for a in done["status"]["attempts"]) == [0, 75]


def _is(found: object, wanted: object) -> None:
    assert found == wanted


def test_an_operator_that_was_killed_does_not_start_what_kueue_holds_back(
    place: Place, kueue: Kueue, operator: Operator
) -> None:
    watched = place.submit("dog", run_policy=QUEUED)
    job = place.job("dog")
    watched.until(phase("Queued"), seconds=30, what="the queue")
    operator.kill()
    operator.start()
    place.edit("dog", retries=5)
    watched.until(lambda j: j["status"].get("observedGeneration", 0) >= 2, seconds=60, what="the edit")
    now = place.job("dog")
    assert now.metadata.uid == job.metadata.uid
    assert now.spec.suspend is True
    assert not kueue.unsuspended


def test_what_the_user_suspends_gives_its_place_in_the_queue_back(place: Place, kueue: Kueue) -> None:
    watched = place.submit("dog", run_policy=QUEUED)
    first = place.job("dog").metadata.uid
    kueue.admit("dog", SPOT)
    place.runs(place.pod("dog"))
    watched.until(phase("Running"), seconds=30, what="running")
    place.edit("dog", suspend=True)
    watched.until(phase("Suspended"), seconds=60, what="suspension")
    assert not place.pods("dog")
    place.edit("dog", suspend=False)
    watched.until(phase("Queued"), seconds=30, what="the queue")
    again = place.job("dog")
    assert again.metadata.uid != first
    assert again.spec.suspend is True
    assert not place.pods("dog")


def test_without_kueues_definitions_it_is_still_said_that_the_job_waits(place: Place) -> None:
    """Kueue may not be there, or the operator may not read its Workloads."""
    if _installed(place):
        Kueue.uninstall(place.api)
        eventually(lambda: _is(_installed(place), False), seconds=30)
    watched = place.submit("dog", run_policy=QUEUED)
    found = watched.until(has("PodsReady", "False", "Queued"), seconds=30, what="Queued")
    assert '"team-a"' in conditions(found)["PodsReady"]["message"]


def _installed(place: Place) -> bool:
    definitions = client.ApiextensionsV1Api(place.api).list_custom_resource_definition().items
    return any(found.metadata.name == "workloads.kueue.x-k8s.io" for found in definitions)
