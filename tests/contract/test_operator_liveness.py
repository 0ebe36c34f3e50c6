"""Liveness on a real API server: it fails when watching or working has stopped, and not when the API server has."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.operating import ChartRights, Place
from support.replicas import Replica, leader_of, replica
from support.waiting import Watched, eventually
from test_operator_lifecycle import RESULT, phase

AUDIT_SECONDS = 4
DEAF_SECONDS = 2 * AUDIT_SECONDS
"""From a change that no watch brings to a failing probe: an audit comes within one interval, waits for a quarter of it
for a watch that is merely late, and half of one more for a sign of life. With the default of 120 s that is 210 s,
and with the chart's three probes at most 5 minutes to a restart."""
PROBE_SECONDS = 5
"""timeoutSeconds of the chart's liveness probe."""
OUTAGE_SECONDS = 65
SLACK = 20
"""Requests and the test's own asking take time too."""

# Real operators in which one thing goes wrong that no fault of the wire can cause.
FREEZE = """
import asyncio, time
from finetune_operator import health, main
from finetune_operator.reconcile import controller
reconcile = controller.Controller.reconcile
async def stuck(self, key):
    if key.name == "stuck":
        {what}
    return await reconcile(self, key)
controller.Controller.reconcile = stuck
health.FROZEN_SECONDS = 3
main.main()
"""


@dataclass
class Outage:
    """An operator without an API server, and what its probe says meanwhile."""

    one: Replica
    place: Place
    ended: Watched
    began: float
    answers: list[tuple[int, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.asking = threading.Thread(target=self._ask, daemon=True)
        self.asking.start()

    def _ask(self) -> None:
        while not self.over.wait(1):
            try:
                self.answers.append(self.one.operator.health())
            except OSError as error:
                self.answers.append((0, repr(error)))


@pytest.fixture(scope="module", autouse=True)
def outage(api_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    """A job is at work and another just made when the API server goes away."""
    name = f"outage-{secrets.token_hex(4)}"
    place = Place(api_server, name, operator_class=name)
    place.make()
    rights = ChartRights(api_server, tmp_path_factory.mktemp("outage"), name, operatorClass=name)
    with replica(rights, api_server, "patient", audit_seconds=20) as one:
        leader_of([one])
        watched = place.submit("before")
        pod = place.pod("before")
        one.proxy.refuse()
        began = time.monotonic()
        place.submit("meanwhile")
        place.runs(pod)
        place.ends(pod, 0, **RESULT)
        found = Outage(one, place, watched, began)
        yield found
        found.over.set()
    place.clear()


def expect_well(one: Replica) -> None:
    assert one.operator.health() == (200, "ok")


def expect_ill(one: Replica, says: str) -> None:
    code, words = one.operator.health()
    assert (code, says in words) == (500, True), words


def test_a_deaf_watch_fails_the_probe(own_place: Place, own_rights: ChartRights, api_server: Path) -> None:
    with replica(own_rights, api_server, "deaf", audit_seconds=AUDIT_SECONDS) as one:
        leader_of([one])
        own_place.submit("before")
        own_place.job("before")
        expect_well(one)
        one.proxy.deafen()
        own_place.submit("after")
        changed = time.monotonic()
        eventually(lambda: expect_ill(one, "the watch of finetunejobs is deaf"), seconds=DEAF_SECONDS + SLACK)
        assert time.monotonic() - changed < DEAF_SECONDS + SLACK
        own_place.job("after")  # meanwhile the audit does the watch's work
        one.proxy.hear()
        one.proxy.drop_watches()
        own_place.submit("heard")
        eventually(lambda: expect_well(one), seconds=20)


def watch_error(code: int) -> dict[str, object]:
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "message": "etcd has a new leader",
    }
    return {"type": "ERROR", "object": status}


def test_watches_that_break_are_taken_up_again(own_place: Place, own_rights: ChartRights, api_server: Path) -> None:
    """However they break, and without the audit's help."""
    without_audit = "from finetune_operator import audit, main\naudit.FIRST_AUDIT_SECONDS = 3600\nmain.main()"
    with replica(own_rights, api_server, "broken", without_audit, audit_seconds=3600) as one:
        leader_of([one])
        breaks = {
            "dropped": one.proxy.drop_watches,
            "too-old": lambda: one.proxy.say(watch_error(410)),
            "failed": lambda: one.proxy.say(watch_error(500)),
        }
        for name, happen in breaks.items():
            happen()
            own_place.submit(name)
            own_place.job(name)
        expect_well(one)
        assert one.operator.process is not None
        assert one.operator.process.poll() is None


def test_one_stuck_worker_fails_the_probe_and_keeps_no_other_job_waiting(
    own_place: Place, own_rights: ChartRights, api_server: Path
) -> None:
    program = FREEZE.format(what="await asyncio.Event().wait()")
    with replica(own_rights, api_server, "stuck", program) as one:
        leader_of([one])
        own_place.submit("stuck")
        own_place.submit("other")
        own_place.job("other")
        eventually(lambda: expect_ill(one, f"a worker has been busy with {own_place.name}/stuck"), seconds=10)
        assert one.operator.stop() == 0, "a stuck worker does not keep it from leaving"


def test_workers_that_take_no_work_fail_the_probe(own_place: Place, own_rights: ChartRights, api_server: Path) -> None:
    """All are asleep although jobs wait: nobody is busy, so only the lack of ended passes tells."""
    asleep = "import asyncio\nfrom finetune_operator.queue import WorkQueue\nWorkQueue.get = asyncio.Event().wait\n"
    program = FREEZE.format(what="pass").replace("import asyncio, time\n", asleep)
    program = program.replace("asyncio.Event().wait\n", "lambda self: asyncio.Event().wait()\n")
    with replica(own_rights, api_server, "asleep", program) as one:
        leader_of([one])
        own_place.submit("waiting")
        eventually(lambda: expect_ill(one, "no worker has ended a pass"), seconds=10)


def test_an_event_loop_that_is_blocked_does_not_answer_the_probe(
    own_place: Place, own_rights: ChartRights, api_server: Path
) -> None:
    program = FREEZE.format(what="time.sleep(600)")
    with replica(own_rights, api_server, "still", program) as one:
        leader_of([one])
        expect_well(one)
        own_place.submit("stuck")

        def expect_silence() -> None:
            with pytest.raises(TimeoutError):
                one.operator.health()

        eventually(expect_silence, seconds=PROBE_SECONDS + SLACK, on=BaseException)


def test_an_api_outage_fails_no_probe_and_ends_no_process(outage: Outage) -> None:
    """The outage began with the first test of this file, so that its minute costs none. It lasts longer than any
    patience within: than a Lease, a request with its repetitions, half an audit's interval."""
    while time.monotonic() < outage.began + OUTAGE_SECONDS:
        time.sleep(0.5)
    outage.over.set()
    outage.asking.join(PROBE_SECONDS)
    assert len(outage.answers) > OUTAGE_SECONDS / 3, "it was asked all the time"
    assert set(outage.answers) == {(200, "ok")}

    one, place = outage.one, outage.place
    assert one.operator.process is not None
    assert one.operator.process.poll() is None
    one.proxy.accept()
    outage.ended.until(phase("Succeeded"), seconds=30, what="the end of a pod that nobody saw end")
    place.job("meanwhile")
    expect_well(one)
