"""The edges: the client's retries, Events, probes, and what kopf is told not to do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any

import aiohttp
import kopf
import pytest
import stamina
from aiohttp import web
from finetune_operator.client import ApiError, ConflictError, ForbiddenError, Kube, NotFoundError
from finetune_operator.connection import Connection
from finetune_operator.events import EventWriter, event_of
from finetune_operator.metrics import Metrics
from finetune_operator.projections import Key, job_state
from finetune_operator.reconcile.actions import Announcement
from finetune_operator.resources import EVENTS, FINETUNEJOBS, FINETUNEPROFILES, JOBS, PODS
from finetune_operator.scope import Scope
from finetune_operator.server import ProbeServer
from finetune_operator.settings import Settings
from finetune_operator.watching import LONGEST_DELAY, EndlessBackoff, NoDiffBase, NoProgress, registry, settings
from kubernetes.aio import client as aio_client
from support.observations import NOW
from test_operator_store import job_body


class Answers:
    """An API server that gives the answers it was told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, object]] = []
        self.asked: list[tuple[str, str, dict[str, str], str]] = []
        self.accepted: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        text = await request.text()
        self.asked.append((request.method, request.path, dict(request.query), text))
        self.accepted.append(request.headers["Accept"])
        status, body = self.answers.pop(0)
        return web.Response(status=status, text=body if isinstance(body, str) else json.dumps(body))


@pytest.fixture
async def server() -> AsyncIterator[tuple[Answers, Kube, Metrics]]:
    answers, metrics = Answers(), Metrics()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answers.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = aio_client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    kube = Kube(Connection(configuration), metrics)
    with stamina.set_testing(True, attempts=4):
        yield answers, kube, metrics
    await kube.close()
    await runner.cleanup()


def requests(metrics: Metrics, verb: str, resource: str, code: str) -> float | None:
    labels = {"verb": verb, "resource": resource, "code": code}
    return metrics.registry.get_sample_value("finetune_operator_api_requests_total", labels)


Served = tuple[Answers, Kube, Metrics]


async def test_a_passing_fault_is_tried_again_and_counted(server: Served) -> None:
    answers, kube, metrics = server
    answers.answers = [(500, {}), (429, "slow down"), (200, {"kind": "Job"})]
    assert await kube.get(JOBS, "art", "dog") == {"kind": "Job"}
    assert [path for _, path, _, _ in answers.asked] == ["/apis/batch/v1/namespaces/art/jobs/dog"] * 3
    assert [requests(metrics, "get", "jobs", code) for code in ("500", "429", "200")] == [1, 1, 1]


async def test_retries_are_bounded(server: Served) -> None:
    answers, kube, _ = server
    answers.answers = [(503, {})] * 9
    with pytest.raises(ApiError):
        await kube.get(JOBS, "art", "dog")
    assert len(answers.asked) == 4


@pytest.mark.parametrize(("code", "error"), [(403, ForbiddenError), (409, ConflictError)])
async def test_a_no_is_a_no(server: Served, code: int, error: type[ApiError]) -> None:
    answers, kube, _ = server
    answers.answers = [(code, {"reason": "R", "message": "because"})]
    with pytest.raises(error, match="because"):
        await kube.create(JOBS, "art", {})
    assert len(answers.asked) == 1


async def test_what_is_not_there(server: Served) -> None:
    answers, kube, _ = server
    answers.answers = [(404, {}), (404, {}), (409, {}), (404, "not JSON")]
    assert await kube.get(FINETUNEPROFILES, None, "x") is None
    await kube.delete(JOBS, "art", "dog", "uid", "Foreground")
    await kube.delete(JOBS, "art", "dog", "uid", "Foreground")
    assert json.loads(answers.asked[1][3])["preconditions"] == {"uid": "uid"}
    with pytest.raises(NotFoundError):
        await kube.apply_status(FINETUNEJOBS, "art", "dog", {})
    assert answers.asked[3][2] == {"fieldManager": "finetune-operator", "force": "true"}
    assert answers.asked[3][1].endswith("/namespaces/art/finetunejobs/dog/status")


async def test_only_the_metadata_comes_back_of_what_nobody_reads_more_of(server: Served) -> None:
    answers, kube, _ = server
    answers.answers = [(201, {}), (201, {})]
    await kube.create(EVENTS, "art", {"kind": "Event"})
    await kube.create(JOBS, "art", {"kind": "Job"})
    assert ["as=PartialObjectMetadata;" in accept for accept in answers.accepted] == [True, False]


async def test_nobody_is_followed_elsewhere(server: Served) -> None:
    """A redirect would take the operator's token along."""
    answers, kube, _ = server
    answers.answers = [(302, {}), (200, {"kind": "Job"})]
    with pytest.raises(ApiError, match="302"):
        await kube.get(JOBS, "art", "dog")


async def test_lists_come_in_pages(server: Served) -> None:
    answers, kube, _ = server
    answers.answers = [(200, {"items": [1], "metadata": {"continue": "more"}}), (200, {"items": [2]})]
    pages = [page async for page in kube.list_pages(PODS, labels="a=b")]
    assert pages == [[1], [2]]
    assert answers.asked[1][2] == {"limit": "500", "labelSelector": "a=b", "continue": "more"}


NEWS = Announcement("Normal", "Started", "pod dog-x has started", "pod-1")


def test_the_same_news_have_the_same_name_and_others_another() -> None:
    job = job_state(job_body())
    first, again = event_of(job, NEWS, "operator-1", NOW), event_of(job, NEWS, "operator-2", NOW)
    other = event_of(job, Announcement("Normal", "Started", "…", "pod-2"), "operator-1", NOW)
    assert first["metadata"]["name"] == again["metadata"]["name"] != other["metadata"]["name"]
    assert first["regarding"]["uid"] == job.uid
    assert len(event_of(job, Announcement("Warning", "Failed", "x" * 5000), "o", NOW)["note"]) <= 1024


async def test_news_are_told_once_and_a_lost_event_stops_nothing(server: Served) -> None:
    answers, kube, metrics = server
    writer, job = EventWriter(kube, "operator-1"), job_state(job_body())
    answers.answers = [(403, {}), (409, {})]
    for _ in range(3):
        await writer.post(job, [NEWS], NOW)
    assert len(answers.asked) == 2, "refused: tried again later; there already: told"
    assert requests(metrics, "create", EVENTS.plural, "409") == 1


async def test_probes_and_metrics() -> None:
    problems: list[str] = []
    ready = [False]
    metrics = Metrics()
    metrics.count_jobs(lambda: [("Running", "art"), ("Running", "art"), ("Failed", "b")])
    probes = ProbeServer(metrics.registry, lambda: problems, lambda: ready[0])
    port = await probes.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def get(path: str) -> tuple[int, str]:
                async with session.get(path) as response:
                    return response.status, await response.text()

            assert await get("/healthz") == (200, "ok")
            assert (await get("/readyz"))[0] == 503
            ready[0] = True
            problems.append("a worker has been busy for ever")
            assert await get("/readyz") == (200, "ok")
            assert await get("/healthz") == (500, "a worker has been busy for ever")
            _, text = await get("/metrics")
    finally:
        await probes.stop()
    assert 'finetune_operator_jobs{namespace="art",phase="Running"} 2.0' in text
    for name in ("reconcile_seconds_count", "reconcile_errors_total", "queue_depth", "status_writes_total"):
        assert f"finetune_operator_{name} 0.0" in text


def test_kopf_watches_and_does_nothing_else() -> None:
    chosen = settings([JOBS, PODS], Scope())
    assert isinstance(chosen.persistence.progress_storage, NoProgress)
    assert isinstance(chosen.persistence.diffbase_storage, NoDiffBase)
    assert not chosen.posting.enabled
    assert chosen.scanning.disabled
    assert chosen.peering.standalone
    assert chosen.watching.server_timeout
    assert chosen.watching.client_timeout
    assert chosen.watching.client_timeout > chosen.watching.server_timeout
    assert chosen.queueing.idle_timeout <= 1, "what was sent is not kept"
    heard: list[object] = []

    def handle(kind: str | None, body: dict[str, Any]) -> None:
        heard.append((kind, body))

    made = registry({JOBS: handle, PODS: handle}, lambda *event: heard.append(event))
    assert isinstance(made, kopf.OperatorRegistry)
    assert len(made._watching.get_all_handlers()) == 2
    for writing in (made._changing, made._spawning, made._webhooks, made._indexing):
        assert not list(writing.get_all_handlers()), "these annotate objects or add finalizers"


def test_an_outage_is_waited_for_without_end() -> None:
    delays = list(islice(EndlessBackoff(), 50))
    assert len(delays) == 50
    assert max(delays) <= LONGEST_DELAY * 1.5
    assert delays[0] < 1


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_OPERATOR_NAMESPACE", "art")
    monkeypatch.setenv("FINETUNE_OPERATOR_TRAINER_IMAGE", "trainer:2")
    chosen = Settings()
    assert (chosen.namespace, chosen.trainer_image, chosen.port) == ("art", "trainer:2", 8080)
    monkeypatch.setenv("FINETUNE_OPERATOR_PORT", "eighty")
    with pytest.raises(ValueError, match="port"):
        Settings()


def test_keys_read_like_kubectl() -> None:
    assert str(Key("art", "dog")) == "art/dog"
