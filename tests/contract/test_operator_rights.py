"""Least privilege: over a whole life the operator asks for everything that the chart lets it, and for nothing else.

It runs behind a proxy that writes down each request, with exactly the chart's RBAC, against an API server that also
checks who may set owner references. A rule that nobody uses fails the test, and so does a request that RBAC refuses.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from support import control_plane
from support.kueue import Kueue
from support.operating import ChartRights, Place
from support.proxy import Right
from support.replicas import Replica, leader_of, replica
from support.waiting import eventually
from test_operator_lifecycle import RESULT, phase

PLUGIN = "OwnerReferencesPermissionEnforcement"
OWNERS = Right("finetune.dev", "finetunejobs/finalizers", "update")
"""Asked for by the API server itself, with that plugin, about a child's owner: no request of the operator shows it."""

NODE = "nobody-at-home"
# Pods on lost nodes are given up after 2 minutes; the test has none to spare.
IMPATIENT = """
from finetune_operator import main
from finetune_operator.policies import lost_node
lost_node.PATIENCE_SECONDS = 1.0
main.main()
"""


@pytest.fixture(scope="module")
def strict_server(api_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A second API server over the same etcd, with the admission plugin that OpenShift has switched on."""
    pids = api_server.with_name("pids")
    if not pids.exists():
        pytest.skip("the API server in kind is not the test's to configure; CI has one that is")
    running = Path(f"/proc/{pids.read_text().split()[1]}/cmdline").read_bytes().decode().strip("\0").split("\0")
    port = control_plane.free_port()
    running[running.index("--secure-port") + 1] = str(port)
    log = tmp_path_factory.mktemp("strict") / "apiserver.log"
    found = yaml.safe_load(api_server.read_text())
    found["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    strict = log.with_name("kubeconfig")
    strict.write_text(yaml.safe_dump(found))
    with log.open("wb") as output:
        command = [*running, "--enable-admission-plugins", PLUGIN]
        process = subprocess.Popen(command, cwd=api_server.parent, stdout=output, stderr=output)
    try:
        ask = ["kubectl", "--kubeconfig", str(strict), "get", "--raw", "/readyz"]
        eventually(lambda: subprocess.run(ask, check=True, capture_output=True), seconds=60, on=Exception)
        yield strict
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.mark.parametrize("where", ["cluster", "one namespace"])
def test_every_right_is_used_and_none_is_missing(
    where: str, own_place: Place, api_server: Path, strict_server: Path, tmp_path: Path
) -> None:
    Kueue.install(own_place.api)
    values = {"operatorClass": own_place.operator_class, "kueue.enabled": "true", "progress": "apiProxy"}
    if where == "one namespace":
        values["watchNamespace"] = own_place.name
    rights = ChartRights(api_server, tmp_path, own_place.name, **values)
    with replica(rights, strict_server, "exact", IMPATIENT, audit_seconds=3) as one:
        leader_of([one])
        try:
            live(own_place, one)
            eventually(lambda: expect_all_used(rights, one), seconds=20)
            assert one.operator.stop() == 0
        finally:  # whatever else went wrong, this explains it
            refused = [r for r in one.proxy.requests if r.status == 403 and " cannot " in r.message]
            assert refused == [], "the chart lacks a right"
        assert one.proxy.used() | {OWNERS} == rights.rules


def expect_all_used(rights: ChartRights, one: Replica) -> None:
    assert rights.rules - one.proxy.used() == {OWNERS}


def live(place: Place, one: Replica) -> None:
    """Everything that may happen to jobs."""
    ended = place.submit("ended", {"ttlSecondsAfterFinished": 0})
    edited = place.submit("edited")
    place.submit("queued", {"queueName": "team-a"})
    place.submit("hanging")
    place.submit("lost")

    bind(place, place.pod("hanging"))
    lost = place.pod("lost")
    bind(place, lost)
    place.runs(lost)
    place.core.delete_namespaced_pod(lost.metadata.name, place.name, grace_period_seconds=1)

    pod = place.pod("ended")
    place.runs(pod, ip="127.0.0.1")
    eventually(lambda: expect_used(one, Right("", "pods/proxy", "get")), seconds=20)
    place.ends(pod, 0, **RESULT)

    place.pod("edited")
    place.edit("edited", retries=7)
    eventually(lambda: expect_backoff_limit(place, 7), seconds=15)
    place.edit("edited", suspend=True)
    status: Any = edited.until(phase("Suspended"), seconds=30, what="suspension")["status"]
    forge(place, status["resolved"]["runConfigMap"])
    place.edit("edited", suspend=False)
    place.pod("edited")

    eventually(lambda: expect_gone(ended), seconds=20)
    place.pod("lost", other_than=lost.metadata.uid)

    one.proxy.deafen()  # what the audit must then repair, it reads object by object
    place.edit_profile(place.name, scratchSizeLimit="1Gi")
    place.edit("edited", suspend=True)
    place.runs(place.pod("hanging"))
    place.core.delete_namespaced_pod(place.pod("lost").metadata.name, place.name)


def bind(place: Place, pod: client.V1Pod) -> None:
    """As a scheduler would, to a node without a kubelet."""
    body = {"metadata": {"name": pod.metadata.name}, "target": {"kind": "Node", "name": NODE}}
    place.core.create_namespaced_pod_binding(pod.metadata.name, place.name, body, _preload_content=False)


def forge(place: Place, name: str) -> None:
    """Puts something else in the snapshot's place."""
    place.core.delete_namespaced_config_map(name, place.name)
    body = {"metadata": {"name": name}, "data": {"run.json": "{}", "profile.json": "{}"}}
    place.core.create_namespaced_config_map(place.name, body)


def expect_used(one: Replica, right: Right) -> None:
    assert right in one.proxy.used()


def expect_backoff_limit(place: Place, value: int) -> None:
    assert place.batch.read_namespaced_job("edited", place.name).spec.backoff_limit == value


def expect_gone(watched: Any) -> None:
    try:
        found = watched.now()
    except ApiException as error:
        assert error.status == 404
    else:
        raise AssertionError(f"{found['metadata']['name']} is still there")


def test_owner_references_need_the_right_to_finalizers(
    own_place: Place, own_rights: ChartRights, api_server: Path, strict_server: Path
) -> None:
    """The one rule whose use no request shows: taken away, the first child is refused."""
    api = config.new_client_from_config(str(api_server))
    rbac = client.RbacAuthorizationV1Api(api)
    (role,) = (
        role
        for role in rbac.list_cluster_role().items
        if role.metadata.labels and role.metadata.labels.get("app.kubernetes.io/instance") == own_place.name
    )
    kept = [rule for rule in role.rules if OWNERS.resource not in rule.resources]
    assert len(kept) == len(role.rules) - 1
    with replica(own_rights, strict_server, "orphaned") as one:
        leader_of([one])
        rbac.patch_cluster_role(role.metadata.name, {"rules": api.sanitize_for_serialization(kept)})
        own_place.submit("orphan")

        def expect_refusal() -> None:
            said = [request.message for request in one.proxy.writes() if request.status == 403]
            assert any("cannot set blockOwnerDeletion" in words for words in said), said

        eventually(expect_refusal, seconds=20)
