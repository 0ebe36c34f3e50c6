"""Stands for finetune_operator.client.Kube, for one process: between any two calls anything may happen.

A call can fail before or after it takes effect, be repeated by the real client's own retries (so that the second one
meets the first one's effect), meet somebody else's write, take seconds, or be the last one of its process. Reads are
linearizable, as the API server's are: what is stale in an operator is its memory, through the watches.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import aiohttp
from finetune_operator.client import ApiError, ConflictError, ForbiddenError, NotFoundError, NotLeadingError
from finetune_operator.resources import FINETUNEJOBS, JOBS, Resource
from support.memory_api import Body, MemoryApi

from chaos.trace import Trace
from chaos.weather import Weather

PAGE = 3


class DeadError(asyncio.CancelledError):
    """A process that was killed asks for something on its way out: it has no way out."""


class Client:
    """`refuses` gives the words of an admission rule that refuses to create this kind now; empty for none."""

    def __init__(
        self,
        who: str,
        api: MemoryApi,
        rng: random.Random,
        trace: Trace,
        weather: Callable[[], Weather],
        refuses: Callable[[Resource], str],
    ) -> None:
        self.who = who
        self.dead = False
        self.cut_off = False
        """Whether nothing answers."""
        self.may_write = True
        self.calls = 0
        self._api = api
        self._rng = rng
        self._trace = trace
        self._weather = weather
        self._refuses = refuses
        self.kill: Callable[[], None] = lambda: None
        """Ends the process."""
        self.on_call: list[Callable[[str, str, Resource, str, str], None]] = []

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Body | None:
        return await self._call("get", resource, namespace, name, self._api.get, resource, namespace or "", name)

    async def list_pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> AsyncIterator[list[Body]]:
        """All pages show the state of the first one's moment."""
        found = await self._call(
            "list", resource, namespace, "", self._api.find, resource, namespace or "", labels, fields
        )
        for first in range(0, len(found) or 1, PAGE):
            if first:
                await self._call("list", resource, namespace, "…", lambda: None)
            page = found[first : first + PAGE]
            yield [{"metadata": body["metadata"]} for body in page] if metadata_only else page

    async def create(self, resource: Resource, namespace: str | None, body: Body) -> Body:
        def act() -> Body:
            words = self._refuses(resource)
            if words:
                raise ForbiddenError(403, "Forbidden", f'{resource.plural} "{body["metadata"]["name"]}": {words}')
            return self._api.create(self.who, resource, namespace or "", body)

        return await self._call("create", resource, namespace, body["metadata"]["name"], act)

    async def apply_status(self, resource: Resource, namespace: str, name: str, body: Body) -> Body:
        act = self._api.apply_status
        return await self._call("status", resource, namespace, name, act, self.who, resource, namespace, name, body)

    async def patch(self, resource: Resource, namespace: str, name: str, body: Body) -> Body:
        act = self._api.merge_patch
        return await self._call("patch", resource, namespace, name, act, self.who, resource, namespace, name, body)

    async def patch_status(self, resource: Resource, namespace: str, name: str, body: Body) -> Body:
        act = self._api.patch_status
        return await self._call(
            "patch-status", resource, namespace, name, act, self.who, resource, namespace, name, body
        )

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str, propagation: str, grace: int | None = None
    ) -> bool:
        assert uid, f"a deletion of {resource.kind} {name} names no UID: it may meet another one of that name"

        def act() -> None:
            self._api.delete(self.who, resource, namespace, name, uid, propagation, grace)

        try:
            await self._call("delete", resource, namespace, name, act)
        except (NotFoundError, ConflictError):
            return False
        return True

    async def _call(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str,
        act: Callable[..., Any],
        *arguments: Any,
    ) -> Any:
        if self.dead:
            raise DeadError
        if verb not in ("get", "list") and not self.may_write:
            raise NotLeadingError
        weather, rng = self._weather(), self._rng
        self.calls += 1
        self._trace.add(self.who, verb, resource.kind, name)
        for listen in self.on_call:
            listen(self.who, verb, resource, namespace or "", name)
        await self._set_out(weather, verb, act, arguments)
        if self.cut_off or rng.random() < weather.faults * 0.5:
            error = self._error(verb)
            self._trace.add(self.who, "  refused", str(error), "")
            raise error
        self._maybe_die(weather)
        if rng.random() < weather.faults * 0.25:
            self._interfere(verb, resource, namespace, name)
        answer = self._act(act, arguments)
        if rng.random() < weather.faults * 0.1:
            answer = self._act(act, arguments)  # the client's own repetition
        self._maybe_die(weather)
        await self._travel(weather)
        if rng.random() < weather.faults * 0.25:
            self._trace.add(self.who, "  answer lost", verb, name)
            raise TimeoutError if rng.random() < 0.5 else ApiError(504, "Timeout", "the answer was lost")
        return answer

    def _act(self, act: Callable[..., Any], arguments: Any) -> Any:
        try:
            return act(*arguments)
        except ApiError as error:
            self._trace.add(self.who, f"  {error.code}", error.message, "")
            raise

    async def _set_out(self, weather: Weather, verb: str, act: Callable[..., Any], arguments: Any) -> None:
        """The request is under way. Whoever breaks it off, or dies meanwhile, cannot know whether it still arrives."""
        try:
            await self._travel(weather)
        except asyncio.CancelledError:
            if verb not in ("get", "list") and self._rng.random() < 0.5:
                asyncio.get_running_loop().call_later(self._rng.uniform(0, 5), self._arrive_late, act, arguments)
            raise

    def _arrive_late(self, act: Callable[..., Any], arguments: Any) -> None:
        self._trace.add(self.who, "  arrives late", "", "")
        with suppress(ApiError):
            act(*arguments)

    async def _travel(self, weather: Weather) -> None:
        slow = weather.slow and self._rng.random() < weather.slow
        await asyncio.sleep(self._rng.uniform(1, 8) if slow else self._rng.random() * 0.02)
        if self.dead:
            raise DeadError

    def _maybe_die(self, weather: Weather) -> None:
        if weather.kills and self._rng.random() < weather.kills:
            self.kill()
            raise DeadError

    def watched(self, resource: Resource, labels: str, fields: str) -> list[Body]:
        """What a watch lists when it begins. kopf repeats it until it succeeds."""
        return self._api.find(resource, "", labels, fields)

    def _error(self, verb: str) -> Exception:
        errors: list[Exception] = [
            ApiError(429, "TooManyRequests", "try later"),
            ApiError(500, "InternalError", "etcdserver: leader changed"),
            TimeoutError(),
            aiohttp.ClientConnectionError("connection refused"),
        ]
        if verb == "list":
            errors.append(ApiError(410, "Expired", "the provided continue parameter is too old"))
        if verb == "create":
            # what a quota's admission says when two requests count at once: nothing was created
            errors.append(ConflictError(409, "Conflict", "Operation cannot be fulfilled on resourcequotas"))
        return self._rng.choice(errors)

    def _interfere(self, verb: str, resource: Resource, namespace: str | None, name: str) -> None:
        """Somebody writes to the same object just before."""
        if verb in ("status", "patch") and resource in (FINETUNEJOBS, JOBS):
            known = self._api.get(resource, namespace or "", name)
            if known is not None:
                notes = {**(known["metadata"].get("annotations") or {}), "touched": str(self._rng.random())}
                self._api.update("somebody", resource, known, metadata={**known["metadata"], "annotations": notes})
