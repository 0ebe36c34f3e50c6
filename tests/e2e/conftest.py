"""A real cluster for the end-to-end tests, and a namespace of its own for each of them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

import pytest
from support import kind
from support.cluster import PROMETHEUS, Cluster, Namespace
from support.prometheus import Prometheus
from support.waiting import eventually

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with kind.running(request, tmp_path_factory.mktemp("kind")) as kubeconfig:
        yield Cluster(kubeconfig)


@pytest.fixture(scope="session")
def s3(cluster: Cluster):
    """A boto3 client of the demo's S3 server."""
    return cluster.s3


@pytest.fixture(scope="session")
def prometheus(cluster: Cluster) -> Prometheus:
    """The demo's Prometheus; it answers."""
    found = Prometheus(PROMETHEUS)
    eventually(lambda: found.query("vector(1)"), seconds=60, on=OSError)
    return found


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace for this test alone. If the test fails, all that was in it is printed before it goes."""
    slug = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_")).strip("-")[:40].rstrip("-")
    made = Namespace(f"e2e-{slug}-{secrets.token_hex(2)}", cluster)
    cluster.kubectl("create", "namespace", made.name)
    cluster.kubectl("label", "namespace", made.name, "pod-security.kubernetes.io/enforce=restricted")
    made.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s3-credentials"},
            "stringData": cluster.s3_keys,
        }
    )
    yield made
    if request.node.stash.get(FAILED, False):
        print(made.story())
    cluster.kubectl("delete", "namespace", made.name, "--wait=false")
