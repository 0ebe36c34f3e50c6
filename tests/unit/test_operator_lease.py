"""Leadership: one at a time, by the local clock from when a change was seen."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_operator import lease as leases
from finetune_operator.lease import DURATION_SECONDS, LeaderElection
from kubernetes.client import V1Lease, V1ObjectMeta
from kubernetes.client.exceptions import ApiException
from support.waiting import eventually


class Server:
    """One Lease with optimistic locking, as the API server keeps it."""

    def __init__(self) -> None:
        self.lease: V1Lease | None = None
        self.version = 0
        self.broken = threading.Event()
        self.replaced = threading.Event()

    def read(self) -> V1Lease | None:
        if self.broken.is_set():
            raise ApiException(status=503)
        return copy.deepcopy(self.lease)

    def create(self, lease: V1Lease) -> None:
        if self.lease is not None:
            raise ApiException(status=409)
        self._keep(lease)

    def replace(self, lease: V1Lease) -> None:
        assert self.lease is not None
        assert lease.metadata is not None
        if lease.metadata.resource_version != str(self.version):
            raise ApiException(status=409)
        self._keep(lease)
        self.replaced.set()

    def _keep(self, lease: V1Lease) -> None:
        self.version += 1
        self.lease = copy.deepcopy(lease)
        self.lease.metadata = V1ObjectMeta(resource_version=str(self.version))

    @property
    def holder(self) -> str:
        assert self.lease is not None
        assert self.lease.spec is not None
        return str(self.lease.spec.holder_identity)


def candidate(server: Server, name: str, **chosen: Any) -> LeaderElection:
    return LeaderElection(server, name, chosen.pop("won", lambda: None), **chosen)


def test_the_first_takes_it_and_renews_it() -> None:
    server = Server()
    first = candidate(server, "a")
    assert first.take(0)
    assert first.take(2)
    assert server.holder == "a"
    assert server.version == 2


def test_the_second_waits_a_whole_duration_from_the_last_change_it_saw() -> None:
    server = Server()
    first, second = candidate(server, "a"), candidate(server, "b")
    assert first.take(0)
    assert not second.take(100)
    assert not second.take(100 + DURATION_SECONDS - 1)
    assert first.take(200)
    assert not second.take(100 + DURATION_SECONDS), "it was renewed meanwhile"
    assert second.take(100 + 2 * DURATION_SECONDS)
    assert server.holder == "b"
    assert server.lease is not None
    assert server.lease.spec is not None
    assert server.lease.spec.lease_transitions == 1
    assert not first.take(300), "who was replaced learns of it"


def test_of_two_that_try_at_once_one_wins() -> None:
    server = Server()
    assert candidate(server, "former").take(0)
    first = candidate(server, "a")

    class Between(Server):
        """The other candidate comes first, between this one's reading and its writing."""

        def read(self) -> V1Lease | None:
            found = server.read()
            first.take(200)
            return found

        def replace(self, lease: V1Lease) -> None:
            server.replace(lease)

    second = candidate(Between(), "b")
    assert not first.take(100)
    second._sight = copy.copy(first._sight)
    with pytest.raises(ApiException):
        second.take(200)
    assert server.holder == "a"


def test_a_clean_exit_gives_it_back_at_once() -> None:
    server, won = Server(), threading.Event()
    first = candidate(server, "a", won=won.set)
    first.start()
    assert won.wait(5)
    first.stop()
    assert server.holder == ""
    assert candidate(server, "b").take(0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(leases, "RENEW_DEADLINE_SECONDS", 0.2)


def over(election: LeaderElection) -> None:
    assert election.left() == 0


def test_who_cannot_renew_it_stops_before_another_may_begin(quick: None) -> None:
    server, won = Server(), threading.Event()
    first = candidate(server, "a", won=won.set)
    first.start()
    assert won.wait(5)
    assert (first.term, first.left() > 0) == (1, True)
    server.broken.set()
    eventually(lambda: over(first), seconds=5)
    assert server.holder == "a", "it runs out by itself"
    won.clear()
    server.broken.clear()
    assert won.wait(5), "who has lost it tries to win it again"
    assert first.term == 2, "the former term does not come back"
    first.stop()


def test_a_request_that_hangs_prolongs_nothing(quick: None) -> None:
    """The end of a term is a time of day, not the outcome of a request."""
    server, won, released = Server(), threading.Event(), threading.Event()

    class Hanging(Server):
        def read(self) -> V1Lease | None:
            if won.is_set():
                released.wait(60)
            return server.read()

        def create(self, lease: V1Lease) -> None:
            server.create(lease)

        def replace(self, lease: V1Lease) -> None:
            server.replace(lease)

    first = candidate(Hanging(), "a", won=won.set)
    first.start()
    assert won.wait(5)
    eventually(lambda: over(first), seconds=2)
    released.set()
    first.stop()


def test_who_is_not_well_does_not_renew_it(quick: None) -> None:
    server, won, well = Server(), threading.Event(), threading.Event()
    well.set()
    first = candidate(server, "a", won=won.set, well=well.is_set)
    first.start()
    assert won.wait(5)
    well.clear()
    eventually(lambda: over(first), seconds=5)
    assert first.alive
    first.stop()


def test_nothing_that_goes_wrong_ends_the_thread(quick: None) -> None:
    """A leader whose thread had died would write on, and nobody would renew."""
    server, won = Server(), threading.Event()
    broken = [ValueError("not JSON"), KeyError("spec"), OSError("no route")]

    class Strange(Server):
        def read(self) -> V1Lease | None:
            if broken:
                raise broken.pop()
            return server.read()

        def create(self, lease: V1Lease) -> None:
            server.create(lease)

        def replace(self, lease: V1Lease) -> None:
            server.replace(lease)

    first = candidate(Strange(), "a", won=won.set)
    first.start()
    assert won.wait(5)
    first.stop()
    assert not first.alive


def test_a_short_outage_is_borne(quick: None) -> None:
    server, won = Server(), threading.Event()
    first = candidate(server, "a", won=won.set)
    first.start()
    assert won.wait(5)
    server.broken.set()
    server.broken.clear()
    server.replaced.clear()
    assert server.replaced.wait(5)
    assert first.term == 1
    first.stop()


def test_who_waits_is_there_when_the_lease_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not up to a whole pause later: the takeover's bound is the duration and one sight of the Lease."""
    server, now = Server(), 1000.0
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: now))
    second = candidate(server, "b")
    assert candidate(server, "a").take(now)
    assert not second.take(now)
    assert second._pause() == leases.RETRY_SECONDS
    now += DURATION_SECONDS - 0.5
    assert second._pause() == pytest.approx(0.5)
    now += 0.5
    assert second.take(now)


def test_the_times_leave_no_moment_for_two() -> None:
    assert leases.RENEW_DEADLINE_SECONDS < DURATION_SECONDS
    assert sum(leases.REQUEST_TIMEOUT) + leases.RETRY_SECONDS < leases.RENEW_DEADLINE_SECONDS, "one failure is borne"
    assert DURATION_SECONDS + leases.RETRY_SECONDS < 20, "the bound of a takeover"
