"""Why is nothing running? Each obstacle is named in a condition, in the platform's words. How soon is not asserted:
the deadlines are `support.waiting`'s, which gives a busy machine more time."""

from __future__ import annotations

from typing import Any

import pytest
from support.operating import Place
from support.waiting import Object, eventually
from test_operator_lifecycle import RESULT, conditions, has, phase

SOON = 15


def test_unknown_profile_is_named_and_its_appearance_noticed(place: Place) -> None:
    name = f"{place.name}-later"
    watched = place.submit("dog", profileName=name)
    found = watched.until(has("Accepted", "False", "ProfileNotFound"), seconds=SOON, what="ProfileNotFound")
    assert f"spec.profileName {name}" in conditions(found)["Accepted"]["message"]
    assert found["status"]["phase"] == "Pending"
    place.make_profile(name)
    try:
        watched.until(has("Accepted", "True", "Accepted"), seconds=SOON, what="acceptance")
        place.job("dog")
    finally:
        place.custom.delete_cluster_custom_object("finetune.dev", "v1alpha1", "finetuneprofiles", name)


def test_a_limit_of_the_profile_is_named(place: Place) -> None:
    place.edit_profile(place.name, limits={"maxSteps": 10})
    watched = place.submit("dog", training={"steps": 11})
    found = watched.until(has("Accepted", "False", "InvalidSpec"), seconds=SOON, what="InvalidSpec")
    says = f"spec.training.steps is 11, FineTuneProfile {place.name} allows at most 10"
    assert says in conditions(found)["Accepted"]["message"]


def test_quota(place: Place) -> None:
    place.core.create_namespaced_resource_quota(
        place.name, {"metadata": {"name": "small"}, "spec": {"hard": {"limits.memory": "1Mi"}}}
    )
    watched = place.submit("dog")
    found = watched.until(has("PodsReady", "False", "QuotaExceeded"), seconds=SOON, what="QuotaExceeded")
    assert "exceeded quota: small" in conditions(found)["PodsReady"]["message"]
    assert found["status"]["phase"] == "Pending"


def test_quota_on_jobs(place: Place) -> None:
    """Refused before there is a Job, whose controller could tell."""
    place.core.create_namespaced_resource_quota(
        place.name, {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    )
    watched = place.submit("dog")
    found = watched.until(has("PodsReady", "False", "QuotaExceeded"), seconds=SOON, what="QuotaExceeded")
    assert "exceeded quota: none" in conditions(found)["PodsReady"]["message"]
    place.core.delete_namespaced_resource_quota("none", place.name)
    place.job("dog", seconds=40)


def test_limit_range(place: Place) -> None:
    limits = [{"type": "Container", "max": {"memory": "8Mi"}}]
    place.core.create_namespaced_limit_range(place.name, {"metadata": {"name": "tight"}, "spec": {"limits": limits}})
    watched = place.submit("dog")
    found = watched.until(has("PodsReady", "False", "PodRejected"), seconds=SOON, what="PodRejected")
    assert "maximum memory usage per Container is 8Mi" in conditions(found)["PodsReady"]["message"]


def test_missing_service_account(place: Place) -> None:
    place.edit_profile(place.name, limits={"allowedServiceAccounts": ["identity"]})
    watched = place.submit("dog", serviceAccountName="identity")
    found = watched.until(has("PodsReady", "False", "ConfigError"), seconds=SOON, what="ConfigError")
    assert 'ServiceAccount "identity" not found' in conditions(found)["PodsReady"]["message"]


def test_no_node_fits(place: Place) -> None:
    watched = place.submit("dog")
    found = watched.until(has("PodsReady", "False", "Unschedulable"), seconds=SOON, what="Unschedulable")
    assert "available" in conditions(found)["PodsReady"]["message"]


@pytest.mark.parametrize(
    ("reason", "message", "condition", "says"),
    [
        ("ErrImagePull", "manifest unknown", "ImagePullFailed", ("trainer.invalid/none:1", "manifest unknown")),
        ("InvalidImageName", "could not parse reference", "ImagePullFailed", ("trainer.invalid/none:1",)),
        ("CreateContainerConfigError", 'configmap "x" not found', "ConfigError", ('configmap "x" not found',)),
    ],
)
def test_the_kubelets_complaints(
    place: Place, reason: str, message: str, condition: str, says: tuple[str, ...]
) -> None:
    watched = place.submit("dog")
    pod = place.pod("dog")
    place.core.patch_namespaced_pod_status(pod.metadata.name, place.name, {"status": {"conditions": SCHEDULED}})
    place.play_kubelet(pod, "Pending", {"waiting": {"reason": reason, "message": message}})
    found = watched.until(has("PodsReady", "False", condition), seconds=SOON, what=condition)
    for words in says:
        assert words in conditions(found)["PodsReady"]["message"]


SCHEDULED = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]


def test_name_conflict_lasts_as_long_as_its_cause(place: Place) -> None:
    container = {"name": "c", "image": "none"}
    body: dict[str, Any] = {
        "metadata": {"name": "dog"},
        "spec": {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }
    place.batch.create_namespaced_job(place.name, body)
    watched = place.submit("dog")
    found = watched.until(has("PodsReady", "False", "NameConflict"), seconds=SOON, what="NameConflict")
    assert "Job dog exists" in conditions(found)["PodsReady"]["message"]
    assert place.batch.read_namespaced_job("dog", place.name).metadata.owner_references is None
    place.batch.delete_namespaced_job("dog", place.name, propagation_policy="Background")
    watched.until(has("PodsReady", "False", "Unschedulable"), seconds=40, what="its own Job")


def test_a_new_job_of_an_old_name_waits_for_the_old_ones_end(place: Place) -> None:
    place.submit("dog")
    old = place.job("dog")
    place.delete("dog")
    place.submit("dog")

    def ask() -> None:
        assert place.batch.read_namespaced_job("dog", place.name).metadata.uid != old.metadata.uid

    eventually(ask, seconds=60, on=Exception)


def snapshot_of(job: Object) -> str:
    status: Any = job["status"]
    return str(status["resolved"]["runConfigMap"])


def suspended(place: Place) -> tuple[Any, str]:
    """A job that was suspended after it began, and the name of its snapshot, now lost."""
    watched = place.submit("dog")
    place.pod("dog")
    place.edit("dog", suspend=True)
    name = snapshot_of(watched.until(phase("Suspended"), seconds=30, what="suspension"))
    place.core.delete_namespaced_config_map(name, place.name)
    return watched, name


def test_a_lost_snapshot_is_made_again_if_it_is_the_same(place: Place) -> None:
    watched, name = suspended(place)
    place.edit("dog", suspend=False)
    place.ends(place.pod("dog"), 0, **RESULT)
    watched.until(phase("Succeeded"), seconds=30, what="success")
    assert place.core.read_namespaced_config_map(name, place.name).immutable


def test_a_lost_snapshot_that_would_differ_ends_the_job(place: Place) -> None:
    watched, name = suspended(place)
    place.edit_profile(place.name, defaults={"training": {"steps": 7}})
    place.edit("dog", suspend=False)
    found = watched.until(phase("Failed"), seconds=30, what="failure")
    assert conditions(found)["Failed"]["reason"] == "SnapshotLost"
    assert name in conditions(found)["Failed"]["message"]


def test_a_forged_snapshot_is_not_used(place: Place) -> None:
    """Who may write ConfigMaps does not thereby get a pod of another profile."""
    watched, name = suspended(place)
    job = watched.now()
    forged = {"image": "evil.invalid/miner:1"}
    owner = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "name": "dog",
        "uid": job["metadata"]["uid"],
        "controller": True,
    }
    data = {"run.json": "{}", "profile.json": str(forged).replace("'", '"')}
    body = {"metadata": {"name": name, "ownerReferences": [owner]}, "data": data}
    place.core.create_namespaced_config_map(place.name, body)
    place.edit("dog", suspend=False)
    pod = place.pod("dog")
    assert pod.spec.containers[0].image == "trainer.invalid/none:1"
