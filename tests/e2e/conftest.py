"""A real cluster for the end-to-end tests, and a namespace of its own for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jobs import Weights, attempts, brief, download, ended, has
from support import kind
from support.cluster import PROMETHEUS, Cluster, Namespace, fresh_namespace
from support.prometheus import Prometheus
from support.waiting import eventually

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in (
        ("one_node", "needs one node of the cluster only"),
        ("node_goes", "takes the second node away"),
        ("node_is_back", "waits for what follows, and gives the node back"),
    ):
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """While the second node is away, which takes minutes, run the tests that can do without it."""
    order = {"node_goes": 1, "one_node": 2, "node_is_back": 3}
    items.sort(
        key=lambda item: max((order[mark.name] for mark in item.iter_markers() if mark.name in order), default=0)
    )


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


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights of `brief` when nothing disturbs it."""
    with fresh_namespace(cluster, "undisturbed") as place:
        place.apply(brief(place))
        done = place.job("brief").until(ended, seconds=600, what="the end")
        assert has("Succeeded")(done), done["status"]
        assert len(attempts(done)) == 1, "something disturbed it"
        return download(s3, done, tmp_path_factory.mktemp("undisturbed")).digests_of_weights()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace for this test alone. If the test fails, all that was in it is printed before it goes."""
    with fresh_namespace(cluster, request.node.name.removeprefix("test_")) as made:
        yield made
        if request.node.stash.get(FAILED, False):
            print(made.story())
