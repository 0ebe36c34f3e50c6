"""What the real Job controller makes of groups."""

from __future__ import annotations

from kubernetes import client
from support.operating import Place
from support.waiting import Object, eventually

INDEX = "batch.kubernetes.io/job-completion-index"


def group_of(place: Place, name: str, other_than: set[str] | None = None) -> list[client.V1Pod]:
    """The two pods that have not ended, by index, once they are there."""

    def ask() -> list[client.V1Pod]:
        live = [pod for pod in place.pods(name) if pod.status.phase in ("Pending", "Running")]
        live = sorted(live, key=lambda pod: pod.metadata.labels[INDEX])
        live = [pod for pod in live if pod.metadata.uid not in (other_than or set())]
        assert [pod.metadata.labels[INDEX] for pod in live] == ["0", "1"]
        return live

    return eventually(ask, seconds=60)


def uids(pods: list[client.V1Pod]) -> set[str]:
    return {pod.metadata.uid for pod in pods}


def ended(job: Object) -> bool:
    status = job.get("status")
    return isinstance(status, dict) and status.get("phase") in ("Succeeded", "Failed")


def status_of(job: Object) -> dict[str, object]:
    status = job["status"]
    assert isinstance(status, dict)
    return status


def test_a_group_that_broke_starts_again_whole_and_is_done_when_its_first_pod_is(place: Place) -> None:
    watched = place.submit("two", engine={"nodes": 2})
    first = group_of(place, "two")
    for pod in first:
        assert pod.spec.hostname == f"two-{pod.metadata.labels[INDEX]}"
        assert pod.spec.subdomain == "two"
        place.runs(pod)
    service = place.core.read_namespaced_service("two", place.name)
    assert {port.name: port.port for port in service.spec.ports} == {"metrics": 8000, "group": 29500}
    assert service.spec.publish_not_ready_addresses

    # one is killed, the other ends because of it: one failure for both
    place.ends(first[1], 137)
    place.ends(first[0], 76, outcome="PeerLost", step=7)
    second = group_of(place, "two", other_than=uids(first))
    eventually(lambda: failures(place, "two", 1), seconds=30)
    for pod in second:
        place.runs(pod)

    # the first pod has published; whether the other one still knows is of no matter
    place.ends(second[0], 0, outcome="Succeeded", step=10, uri="s3://models/dog/")
    status = status_of(watched.until(ended, seconds=30, what="its end"))
    assert status["phase"] == "Succeeded"
    # the first pod stands for the group, and beside it whoever says why it broke
    assert sorted(attempt["reason"] for attempt in status["attempts"]) == ["Error", "PeerLost", "Succeeded"]
    assert place.job("two").status.active in (None, 0)


def failures(place: Place, name: str, count: int) -> None:
    assert place.job(name).status.failed == count


def test_retries_are_the_groups_and_may_be_edited(place: Place) -> None:
    """A limit for each index could not be changed once the Job exists."""
    watched = place.submit("two", {"retries": 0}, engine={"nodes": 2})
    pods = group_of(place, "two")
    place.edit("two", retries=1)

    def patched() -> None:
        assert place.job("two").spec.backoff_limit == 1

    eventually(patched, seconds=15)
    for again in (True, False):
        for pod in pods:
            place.runs(pod)
        place.ends(pods[0], 1, outcome="Error", message="out of memory")
        place.ends(pods[1], 76, outcome="PeerLost")
        if again:
            pods = group_of(place, "two", other_than=uids(pods))
    status = status_of(watched.until(ended, seconds=30, what="its end"))
    assert status["phase"] == "Failed"
    failures(place, "two", 2)


def test_a_mistake_that_a_later_pod_finds_is_final(place: Place) -> None:
    watched = place.submit("two", engine={"nodes": 2})
    pods = group_of(place, "two")
    for pod in pods:
        place.runs(pod)
    for pod in reversed(pods):
        place.ends(pod, 65, outcome="BadData", message="a.png is no picture; remove it")
    status = status_of(watched.until(ended, seconds=30, what="its end"))
    assert status["phase"] == "Failed"
    conditions = {one["type"]: one for one in status["conditions"]}
    assert "a.png is no picture; remove it" in str(conditions), conditions


def test_a_namespace_with_an_unfinished_group_can_be_deleted(place: Place) -> None:
    """Kubernetes deletes the pods of a namespace before its Jobs: nothing may hold them until they have successors."""
    other = Place(place.kubeconfig, f"{place.name}-goes")
    other.make()
    other.submit("two", engine={"nodes": 2})
    pods = group_of(other, "two")
    for pod in pods:
        binding = {"metadata": {"name": pod.metadata.name}, "target": {"kind": "Node", "name": "none"}}
        other.core.create_namespaced_pod_binding(pod.metadata.name, other.name, binding, _preload_content=False)
        other.runs(pod)
    other.clear()

    def told_to_stop() -> None:
        assert all(pod.metadata.deletion_timestamp for pod in other.pods("two"))

    eventually(told_to_stop, seconds=30)
    for pod in pods:
        other.ends(pod, 75, outcome="Interrupted", step=3)
        other.core.delete_namespaced_pod(pod.metadata.name, other.name, grace_period_seconds=0)

    def gone() -> None:
        assert other.name not in [one.metadata.name for one in other.core.list_namespace().items]

    eventually(gone, seconds=30)
