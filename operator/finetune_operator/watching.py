"""kopf, and only its watching: streams that are resumed, renewed and never given up.

It runs in a thread with an event loop of its own, since on its way out it cancels every task that is younger than
itself. It writes nothing: no finalizer, no annotation, no Event.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import kopf

from finetune_operator.handlers import Handle
from finetune_operator.hearing import Hearing
from finetune_operator.resources import CORE_EVENTS, Resource
from finetune_operator.scope import Scope

logger = logging.getLogger(__name__)

SERVER_TIMEOUT = 240
CLIENT_TIMEOUT = 270
FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0
STOP_SECONDS = 5.0
IDLE_SECONDS = 0.5
"""kopf keeps a task for each object, with its last state, for so long after the last news of it: with its usual 5 s the
start of an operator with thousands of jobs would hold all of them as they were sent, several times what is needed."""


class EndlessBackoff:
    """Delays between attempts, without end: an API outage must not end the process."""

    def __iter__(self) -> Iterator[float]:
        delay = FIRST_DELAY
        while True:
            yield delay * (1 + random.random() / 2)  # noqa: S311 - spreads load, guards nothing
            delay = min(LONGEST_DELAY, delay * 2)


class NoProgress(kopf.ProgressStorage):
    """kopf keeps no state on objects: there is none to keep."""

    def fetch(self, **_: object) -> None:
        return None

    def store(self, **_: object) -> None:
        return None

    def purge(self, **_: object) -> None:
        return None

    def touch(self, **_: object) -> None:
        return None

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class NoDiffBase(kopf.DiffBaseStorage):
    """kopf compares nothing, so it need not copy each object either."""

    def build(self, **_: object) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: object) -> None:
        return None

    def store(self, **_: object) -> None:
        return None


def settings(resources: Iterable[Resource], scope: Scope) -> kopf.OperatorSettings:
    """kopf's settings for watching alone."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.persistence.progress_storage = NoProgress()
    chosen.persistence.diffbase_storage = NoDiffBase()
    chosen.networking.error_backoffs = EndlessBackoff()
    chosen.networking.request_timeout = 60
    chosen.networking.connect_timeout = 10
    chosen.watching.server_timeout = SERVER_TIMEOUT
    chosen.watching.client_timeout = CLIENT_TIMEOUT
    chosen.watching.connect_timeout = 10
    chosen.watching.chunk_size = 500
    chosen.queueing.idle_timeout = IDLE_SECONDS
    chosen.watching.field_selectors[_key(CORE_EVENTS)] = "type=Warning,involvedObject.kind=Job"
    for resource in resources:
        if labels := scope.labels(resource):
            chosen.watching.label_selectors[_key(resource)] = labels
        if fields := scope.fields(resource):
            chosen.watching.field_selectors[_key(resource)] = fields
    return chosen


def _key(resource: Resource) -> tuple[str, str, str]:
    return resource.group, resource.version, resource.plural


def registry(handles: Iterable[Resource], forward: Callable[..., None]) -> kopf.OperatorRegistry:
    """A registry of its own, whose handlers pass each event on through `forward(resource, type, body)`."""
    chosen = kopf.OperatorRegistry()
    kopf.on.login(registry=chosen)(kopf.login_via_client)

    for resource in handles:

        async def on_event(
            type: str | None,
            body: kopf.Body,
            _resource: Resource = resource,
            **_: object,
        ) -> None:
            forward(_resource, type, dict(body))

        decorate = kopf.on.event(*_key(resource), registry=chosen, id=resource.plural)
        decorate(on_event)
    return chosen


class Watcher:
    """Watches until it is stopped; `handles` are called on the loop that started it."""

    def __init__(self, handles: dict[Resource, Handle], scope: Scope, hearing: Hearing) -> None:
        self._handles = handles
        self._scope = scope
        self._hearing = hearing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> asyncio.Future[None]:
        """Starts the thread. The future is done when watching has ended; with the exception, if it ended by one."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def forward(resource: Resource, kind: str | None, body: dict[str, Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._take, resource, kind, body)

        def watch() -> None:
            error: BaseException | None = None
            try:
                asyncio.run(self._watch(registry(self._handles, forward)))
            except BaseException as raised:  # the thread's last word: nobody else would hear of it
                error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(_finish, ended, error)

        self._thread = threading.Thread(target=watch, name="watching", daemon=True)
        self._thread.start()
        return ended

    async def _watch(self, chosen: kopf.OperatorRegistry) -> None:
        """kopf gives up for some errors that a watch may bring, and for a definition that is away: it begins anew."""
        # an Event of this loop: for one of `threading` kopf would wait in a thread that nothing can interrupt
        self._loop = asyncio.get_running_loop()
        namespace = self._scope.namespace
        where: dict[str, Any] = {"namespaces": [namespace]} if namespace else {"clusterwide": True}
        for delay in EndlessBackoff():
            try:
                await kopf.operator(
                    registry=chosen,
                    settings=settings(self._handles, self._scope),
                    standalone=True,
                    stop_flag=self._stop,
                    **where,
                )
            except Exception:  # what kopf raises is not bounded, and an operator that is deaf serves nobody
                logger.exception("watching has ended, and begins anew in %.1f s", delay)
            if self._stop.is_set():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stop.wait()

    def _take(self, resource: Resource, kind: str | None, body: dict[str, Any]) -> None:
        """One strange object must not keep the others from being heard."""
        self._hearing.heard(resource)
        try:
            self._handles[resource](kind, body)
        except (KeyError, TypeError, ValueError):
            name = (body.get("metadata") or {}).get("name")
            logger.exception("cannot read %s %s", body.get("kind"), name)

    async def stop(self) -> None:
        """Ends the streams, and waits a while for it."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)


def _finish(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
