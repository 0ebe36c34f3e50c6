"""Asking trainers: what answers is a user's pod, so nothing it says is taken on trust."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from finetune_api.progress import Progress
from finetune_operator.connection import Connection
from finetune_operator.metrics import Metrics
from finetune_operator.progress import client as clients
from finetune_operator.progress import poller as pollers
from finetune_operator.progress.board import STALE_SECONDS, ProgressBoard
from finetune_operator.progress.client import LARGEST_ANSWER, NoProgressError, ProgressClient
from finetune_operator.progress.poller import WRITES_PER_SECOND, ProgressPoller
from finetune_operator.progress.reading import percent
from finetune_operator.projections import Key, PodState, job_state
from finetune_operator.store import Store
from kubernetes.aio.client import Configuration
from support.observations import KEY, NOW, UID, at, running
from test_operator_store import job_body

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
GOOD: dict[str, Any] = {"runUid": UID, "podUid": "pod-1", "stage": "Training", "step": 3, "totalSteps": 9}


@asynccontextmanager
async def trainer(handler: Handler) -> AsyncIterator[ProgressClient]:
    """A client that asks at the port of a trainer which answers by `handler`."""
    app = web.Application()
    app.router.add_get("/progress", handler)
    app.router.add_get("/elsewhere", answering(GOOD))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = ProgressClient(runner.addresses[0][1])
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


def answering(value: object, status: int = 200) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=value if isinstance(value, str) else json.dumps(value), status=status)

    return handler


async def redirecting(_: web.Request) -> web.Response:
    raise web.HTTPFound("/elsewhere")


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b"x" * 65536)
    except ConnectionError:
        return response


POD = running(ip="127.0.0.1")


async def test_through_the_api_server() -> None:
    """For an operator outside the cluster: the proxy's path, the operator's token, and the same mistrust."""
    asked: list[tuple[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append((request.path, request.headers.get("Authorization", "")))
        if len(asked) > 1:
            raise web.HTTPFound("/elsewhere")
        return web.Response(text=json.dumps(GOOD))

    app = web.Application()
    app.router.add_get("/api/v1/namespaces/art/pods/{pod}/proxy/progress", handler)
    app.router.add_get("/elsewhere", answering(GOOD))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    settings = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    settings.api_key = {"BearerToken": "secret"}
    settings.api_key_prefix = {"BearerToken": "Bearer"}
    connection = Connection(settings)
    client = ProgressClient(8000, connection)
    try:
        assert (await client.ask(POD)).step == 3
        with pytest.raises(NoProgressError, match="refused"):
            await client.ask(POD)
    finally:
        await client.close()
        await connection.close()
        await runner.cleanup()
    assert asked[0] == ("/api/v1/namespaces/art/pods/dog-abcde:8000/proxy/progress", "Bearer secret")


async def test_a_good_answer() -> None:
    async with trainer(answering(GOOD)) as client:
        progress = await client.ask(POD)
    assert (progress.step, progress.total_steps, progress.stage) == (3, 9, "Training")


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (answering(GOOD | {"podUid": "pod-2"}), "another_pod"),
        (answering(GOOD | {"runUid": "another"}), "another_pod"),
        (answering(GOOD | {"step": 10}), "invalid"),
        (answering(GOOD | {"step": -1}), "invalid"),
        (answering(GOOD | {"stage": "Mining"}), "invalid"),
        (answering(GOOD | {"extra": 1}), "invalid"),
        (answering(GOOD | {"judgement": {"step": 1, "figures": {"fidelity": "high"}}}), "invalid"),
        (answering(GOOD | {"judgement": {"step": 1, "figures": {"a text, at length": 1}}}), "invalid"),
        (answering(GOOD | {"judgement": {"step": 1, "figures": {f"f{i}": 1 for i in range(33)}}}), "invalid"),
        (answering(GOOD | {"engine": {"kind": "Fast", "does": "Fast", "why": ""}}), "invalid"),
        (answering(GOOD | {"engine": {"kind": "Eager", "does": "Eager", "why": "y" * 513}}), "invalid"),
        (answering('{"loss": NaN}'), "invalid"),
        (answering("<html>"), "invalid"),
        (answering(GOOD, status=500), "refused"),
        (redirecting, "refused"),
        (answering(" " * (LARGEST_ANSWER + 1)), "too_large"),
        (endless, "too_large"),
    ],
)
async def test_bad_answers_are_named_and_dropped(handler: Handler, why: str) -> None:
    async with trainer(handler) as client:
        with pytest.raises(NoProgressError, match=f"^{why}$"):
            await client.ask(POD)


async def test_silence_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 0.05)
    forever = asyncio.Event()

    async def silent(_: web.Request) -> web.Response:
        await forever.wait()
        return web.Response()

    async with trainer(silent) as client:
        with pytest.raises(NoProgressError, match=r"^unreachable$"):
            await client.ask(POD)
        forever.set()


def progress(step: int = 3) -> Progress:
    return Progress.model_validate(GOOD | {"step": step})


def test_the_board_tells_news_and_staleness() -> None:
    board = ProgressBoard()
    assert board.reading(UID, NOW) is None
    assert board.answered(UID, progress(), NOW)
    assert not board.answered(UID, progress(), NOW)
    assert board.answered(UID, progress(4), NOW)
    assert not board.silent(UID, NOW)
    late = NOW + timedelta(seconds=STALE_SECONDS)
    assert board.silent(UID, late)
    reading = board.reading(UID, late)
    assert reading is not None
    assert (reading.stale, reading.progress, reading.at) == (True, progress(4), NOW)
    assert board.answered(UID, progress(4), late), "that it answers again is news"
    board.keep_only(set())
    assert board.reading(UID, late) is None


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def poller(
    store: Store, clock: Clock, woken: list[Key], client: ProgressClient, backlog: Callable[[], int] = lambda: 0
) -> ProgressPoller:
    return ProgressPoller(store, ProgressBoard(), client, Metrics(), woken.append, 5.0, clock, backlog)


def test_each_pod_is_asked_in_its_turn() -> None:
    store, clock = Store(), Clock()
    polling = poller(store, clock, [], ProgressClient(1))
    store.put_pod(running())
    store.put_pod(running(uid="waits", running=False))
    store.put_pod(running(uid="leaves", deletion_at=at(60)))
    store.put_pod(running(uid="nowhere", ip=""))
    assert [pod.uid for pod in polling.due()] == ["pod-1"]
    clock.now += timedelta(seconds=4)
    assert polling.due() == []
    clock.now += timedelta(seconds=1)
    assert [pod.uid for pod in polling.due()] == ["pod-1"]


def test_many_jobs_are_asked_less_often_so_that_writes_stay_few() -> None:
    store, clock = Store(), Clock()
    polling = poller(store, clock, [], ProgressClient(1))
    for i in range(1000):
        store.put_pod(running(uid=f"pod-{i}"))
    asked = []
    for _ in range(1000 // WRITES_PER_SECOND):
        due = polling.due()
        assert len(due) == WRITES_PER_SECOND
        asked += [pod.uid for pod in due]
        clock.now += timedelta(seconds=1)
    assert len(set(asked)) == 1000, "who has waited longest comes first, so none is forgotten"
    assert [pod.uid for pod in polling.due()] == asked[:WRITES_PER_SECOND]


def test_while_jobs_wait_for_a_worker_nobody_is_asked() -> None:
    """Each answer would make one more wait, before whatever happens next."""
    store, waiting = Store(), [0]
    polling = poller(store, Clock(), [], ProgressClient(1), lambda: waiting[0])
    for i in range(100):
        store.put_pod(running(uid=f"pod-{i}"))
    waiting[0] = 500
    assert polling.due() == []
    waiting[0] = WRITES_PER_SECOND - 3
    assert len(polling.due()) == 3
    waiting[0] = 0
    assert len(polling.due()) == WRITES_PER_SECOND


async def test_trainers_that_never_answer_delay_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred accept the question and say nothing; the others are heard while those are waited for."""
    monkeypatch.setattr(pollers, "WRITES_PER_SECOND", 1000)
    forever = asyncio.Event()
    store, heard = Store(), set[str]()
    for i in range(120):
        store.put_pod(running(uid=f"pod-{i}", job=Key("art", f"job-{i}"), owner_uid=f"job-{i}"))

    class Asks(ProgressClient):
        async def ask(self, pod: PodState) -> Progress:
            if int(pod.uid.removeprefix("pod-")) < 100:
                await forever.wait()
            return progress()

    all_heard = asyncio.Event()

    def wake(key: Key) -> None:
        heard.add(key.name)
        if len(heard) == 20:
            all_heard.set()

    polling = ProgressPoller(store, ProgressBoard(), Asks(1), Metrics(), wake, 5.0, Clock(), lambda: 0)
    task = asyncio.create_task(polling.run())
    async with asyncio.timeout(5):
        await all_heard.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_news_wake_the_job() -> None:
    store, clock = Store(), Clock()
    store.put_job(job_state(job_body()))
    store.put_pod(POD)
    woken: asyncio.Queue[Key] = asyncio.Queue()
    async with trainer(answering(GOOD)) as client:
        polling = ProgressPoller(store, ProgressBoard(), client, Metrics(), woken.put_nowait, 5.0, clock, lambda: 0)
        task = asyncio.create_task(polling.run())
        async with asyncio.timeout(5):
            assert await woken.get() == KEY
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_percent_is_rounded_down() -> None:
    assert [percent(*pair) for pair in ((0, 0), (0, 9), (199, 200), (200, 200))] == ["0%", "0%", "99%", "100%"]
