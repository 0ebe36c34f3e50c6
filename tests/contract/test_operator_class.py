"""Several operators in one cluster: each serves the jobs of its class and neither sees nor touches another's."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.operating import ChartRights, Operator, Place
from support.replicas import Replica, leader_of, replica
from test_operator_lifecycle import RESULT, phase

LABEL = "finetune.dev/operator-class"


@pytest.fixture
def two(api_server: Path, place: Place, tmp_path: Path) -> Iterator[dict[str, Replica]]:
    """Operators of classes named after the place, besides the session's, which has none."""
    with ExitStack() as stack:
        found = {}
        for letter in ("a", "b"):
            rights = ChartRights(api_server, tmp_path, f"{place.name}-{letter}", operatorClass=f"{place.name}-{letter}")
            found[letter] = stack.enter_context(replica(rights, api_server, letter))
        yield found


def test_each_operator_serves_its_class_alone(place: Place, operator: Operator, two: dict[str, Replica]) -> None:
    for one in two.values():
        leader_of([one])  # all three lead at once: each has a Lease of its own
    assert operator.leads()
    names = {
        "none": None,
        "a": f"{place.name}-a",
        "b": f"{place.name}-b",
        "nobody": f"{place.name}-{secrets.token_hex(2)}",
    }
    watched = {
        name: place.submit(name, **({"operatorClass": wanted} if wanted else {})) for name, wanted in names.items()
    }
    for name in ("none", "a", "b"):
        pod = place.pod(name)
        assert pod.metadata.labels.get(LABEL) == names[name]
        assert place.job(name).metadata.labels.get(LABEL) == names[name]
        place.runs(pod)
        place.ends(pod, 0, **RESULT)
        watched[name].until(phase("Succeeded"), seconds=30, what="success")

    assert "status" not in watched["nobody"].now(), "a class that nobody serves"
    assert place.pods("nobody") == []
    for letter, one in two.items():
        concerned = {request.name for request in one.proxy.writes() if request.right.resource == "finetunejobs/status"}
        assert concerned == {letter}, "no other job's status was even tried"
        assert f'finetune_operator_jobs{{namespace="{place.name}",phase="Succeeded"}} 1.0' in one.operator.get(
            "/metrics"
        )
        leases = {request.name for request in one.proxy.requests if "leases" in request.path and request.name}
        assert leases == {one.operator.settings["FINETUNE_OPERATOR_LEASE_NAME"]}
        events = {event.reporting_instance for event in place.events(letter)}
        assert events == {f"{letter}-1"}
