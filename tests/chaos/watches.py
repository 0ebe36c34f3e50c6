"""Watch streams of one process, a stream for each kind. Within a kind events about one object come in order; kinds
know nothing of each other. A stream may be late, lose an event, or break: it is then listed anew, and of what vanished
in between nobody tells (kopf after a 410)."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

from finetune_operator.handlers import Handle
from finetune_operator.resources import CORE_EVENTS, Resource
from finetune_operator.scope import Scope
from support.memory_api import Body, Write, selected, uid_of

from chaos.client import Client
from chaos.weather import Weather

JOB_WARNINGS = "type=Warning,involvedObject.kind=Job"


class Watches:
    """All streams of a process. Nothing is heard before `start` or after `stop`."""

    def __init__(
        self,
        handles: dict[Resource, Handle],
        scope: Scope,
        client: Client,
        rng: random.Random,
        weather: Callable[[], Weather],
    ) -> None:
        self._streams = {
            resource: _Stream(resource, handle, scope, client, rng, weather) for resource, handle in handles.items()
        }

    def start(self) -> None:
        for stream in self._streams.values():
            stream.list_anew()

    def stop(self) -> None:
        for stream in self._streams.values():
            stream.stopped = True

    def take(self, write: Write) -> None:
        """A change of any object."""
        stream = self._streams.get(write.resource)
        if stream is not None:
            stream.take(write)

    def break_one(self, rng: random.Random) -> str:
        """One stream loses its place and is listed anew. Returns the kind."""
        stream = rng.choice(list(self._streams.values()))
        stream.list_anew()
        return stream.resource.kind


class _Stream:
    def __init__(
        self,
        resource: Resource,
        handle: Handle,
        scope: Scope,
        client: Client,
        rng: random.Random,
        weather: Callable[[], Weather],
    ) -> None:
        self.resource = resource
        self.stopped = False
        self._handle = handle
        self._labels = scope.labels(resource)
        self._fields = JOB_WARNINGS if resource is CORE_EVENTS else scope.fields(resource)
        self._client = client
        self._rng = rng
        self._weather = weather
        self._listening = False
        self._under_way = False
        self._pending: deque[tuple[str | None, Body]] = deque()

    def take(self, write: Write) -> None:
        if not self._listening or self.stopped or not self._mine(write.new):
            return
        if self._weather().drops and self._rng.random() < self._weather().drops:
            return
        self._pending.append((write.kind, write.new))
        self._set_out()

    def list_anew(self) -> None:
        """What was under way is lost; after a while everything is listed."""
        self._pending.clear()
        self._listening = False
        asyncio.get_running_loop().call_later(self._delay(), self._list)

    def _list(self) -> None:
        if self.stopped or self._listening:
            return
        if self._client.cut_off:
            asyncio.get_running_loop().call_later(5.0, self._list)
            return
        self._listening = True
        self._pending.extend((None, body) for body in self._client.watched(self.resource, self._labels, self._fields))
        self._set_out()

    def _mine(self, body: Body) -> bool:
        return selected(body, self._labels, self._fields)

    def _delay(self) -> float:
        lag = self._weather().lag
        return self._rng.uniform(0, lag) if self._rng.random() < 0.2 else self._rng.uniform(0, min(lag, 0.05))

    def _set_out(self) -> None:
        if self._pending and not self._under_way:
            self._under_way = True
            asyncio.get_running_loop().call_later(self._delay(), self._arrive)

    def _arrive(self) -> None:
        """Some of what is under way."""
        self._under_way = False
        if self.stopped:
            return
        if self._client.cut_off:
            asyncio.get_running_loop().call_later(1.0, self._set_out)
            return
        for _ in range(self._rng.randint(1, len(self._pending)) if self._pending else 0):
            kind, body = self._next()
            self._handle(kind, body)
        self._set_out()

    def _next(self) -> tuple[str | None, Body]:
        """The first event; or the second, if it is about another object: kopf keeps order for each object alone."""
        first = self._pending.popleft()
        swaps = self._weather().swaps
        if swaps and self._pending and uid_of(self._pending[0][1]) != uid_of(first[1]) and self._rng.random() < swaps:
            second = self._pending.popleft()
            self._pending.appendleft(first)
            return second
        return first
