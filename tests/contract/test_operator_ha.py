"""Two operators on a real API server: the second takes over from the first, however it goes, and nothing happens
twice. The bounds are the issue's and the Lease's: 12 s, given up after 8 s without renewal, tried every 2 s."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.operating import ChartRights, Place
from support.proxy import Request
from support.replicas import Replica, leader_of, replica, wait_for_write
from support.waiting import Watched, eventually
from test_operator_lifecycle import RESULT, phase

TAKEOVER_SECONDS = 20
"""The issue's bound, from the death of one to the other's first write."""
HANDOVER_SECONDS = 5
"""A Lease that was given back is found free at the next try, 2 s later at most."""
EXIT_SECONDS = 15


@pytest.fixture
def pair(api_server: Path, own_rights: ChartRights) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        yield [stack.enter_context(replica(own_rights, api_server, name)) for name in ("first", "second")]


def roles(pair: list[Replica]) -> tuple[Replica, Replica]:
    """The one that leads, and the other."""
    leader = leader_of(pair)
    (standby,) = (one for one in pair if one is not leader)
    return leader, standby


def submit(place: Place, *names: str) -> list[Watched]:
    return [place.submit(name) for name in names]


def expect_single(place: Place, *names: str) -> None:
    """Each has one Job, and no Event was told twice."""
    jobs = Counter(job.metadata.owner_references[0].name for job in place.batch.list_namespaced_job(place.name).items)
    assert jobs == dict.fromkeys(names, 1)
    for name in names:
        told = Counter((event.reason, event.message) for event in place.events(name))
        assert set(told.values()) == {1}, told
        assert all((event.count or 1) == 1 for event in place.events(name))


def finish(place: Place, watched: list[Watched], names: tuple[str, ...]) -> None:
    """Every job runs to its end under whoever leads, and its status tells all of it."""
    for name in names:
        pod = place.pod(name)
        place.runs(pod)
        place.ends(pod, 0, **RESULT)
    for one in watched:
        status: Any = one.until(phase("Succeeded"), seconds=30, what="success")["status"]
        assert [attempt["reason"] for attempt in status["attempts"]] == ["Succeeded"]
        assert status["artifacts"]["manifestUri"] == RESULT["manifestUri"]


def test_the_other_takes_over_when_the_leader_dies_in_the_middle_of_its_work(
    own_place: Place, pair: list[Replica]
) -> None:
    leader, standby = roles(pair)
    names = ("a", "b", "c", "d", "e", "f")

    def of_the_last_jobs(request: Request) -> bool:
        return request.writes and request.right.resource in ("jobs", "finetunejobs/status")

    watched = submit(own_place, *names[:2])
    own_place.job("b")
    gate = leader.proxy.hold(of_the_last_jobs)
    watched += submit(own_place, *names[2:])
    eventually(lambda: expect_waiting(gate.waiting, 4), seconds=20)
    died = time.monotonic()
    leader.operator.kill()
    took = wait_for_write(standby, died, TAKEOVER_SECONDS)
    assert took < TAKEOVER_SECONDS
    # what the dead one had sent arrives late, when the other has made the same
    for name in names:
        own_place.job(name)
    leader.proxy.open(gate)
    finish(own_place, watched, names)
    expect_single(own_place, *names)


def expect_waiting(waiting: list[Request], count: int) -> None:
    assert len(waiting) >= count, waiting


def test_a_leader_that_leaves_in_order_hands_over_at_once(own_place: Place, pair: list[Replica]) -> None:
    leader, standby = roles(pair)
    names = ("a", "b")
    watched = submit(own_place, "a")
    own_place.job("a")
    leader.operator.send(signal.SIGTERM)
    left = time.monotonic()
    watched += submit(own_place, "b")
    assert wait_for_write(standby, left, EXIT_SECONDS) < HANDOVER_SECONDS
    assert leader.operator.process is not None
    assert leader.operator.process.wait(timeout=EXIT_SECONDS) == 0
    finish(own_place, watched, names)
    expect_single(own_place, *names)


@pytest.mark.parametrize("how", ["cut off", "suspended"])
def test_a_leader_writes_nothing_more_once_the_other_has_begun(how: str, own_place: Place, pair: list[Replica]) -> None:
    leader, standby = roles(pair)
    watched = submit(own_place, "a", "b")
    pods = [own_place.pod(name) for name in ("a", "b")]
    began = time.monotonic()
    if how == "cut off":
        leader.proxy.fail(503)
    else:
        leader.operator.send(signal.SIGSTOP)
    for pod in pods:  # news for both: each would write it
        own_place.runs(pod)
    took_over = began + wait_for_write(standby, began, TAKEOVER_SECONDS)
    if how == "cut off":
        leader.proxy.fail(0)
    else:
        leader.operator.send(signal.SIGCONT)
    for pod in pods:
        own_place.ends(pod, 0, **RESULT)
    for one in watched:
        one.until(phase("Succeeded"), seconds=30, what="success")
    late = [request for request in leader.proxy.writes() if request.at >= took_over]
    assert late == [], "who has lost the Lease writes nothing, refused or not"
    assert leader.operator.health() == (200, "ok"), "it stands by"
    assert not leader.operator.leads()
    expect_single(own_place, "a", "b")


@pytest.mark.parametrize("pause", ["short", "long"])
def test_sigterm_in_the_middle_of_a_pass_loses_nothing(
    pause: str, own_place: Place, own_rights: ChartRights, api_server: Path
) -> None:
    """A write that is slow is waited for; one that is slower than the patience is left behind, and lands later still,
    when the next operator has done the same."""
    with replica(own_rights, api_server, "leaving") as one:
        leader_of([one])
        gate = one.proxy.hold(lambda request: request.writes and request.right.resource == "jobs")
        watched = submit(own_place, "dog")
        eventually(lambda: expect_waiting(gate.waiting, 1), seconds=20)
        one.operator.send(signal.SIGTERM)
        if pause == "short":
            one.proxy.open(gate)
        assert one.operator.process is not None
        assert one.operator.process.wait(timeout=EXIT_SECONDS) == 0
        if pause == "short":
            status: Any = watched[0].now()["status"]
            assert status["phase"], "the pass came to its end"
            own_place.job("dog")
        with replica(own_rights, api_server, "next"):
            own_place.job("dog")
            if pause == "long":
                one.proxy.open(gate)
            finish(own_place, watched, ("dog",))
            expect_single(own_place, "dog")
