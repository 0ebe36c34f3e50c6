"""The API server: plain dicts in and out, bounded retries, counted requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self, cast

import aiohttp
import stamina

from finetune_operator.connection import Connection
from finetune_operator.metrics import Metrics
from finetune_operator.resources import CONFIGMAPS, EVENTS, SERVICES, Resource

Object = dict[str, Any]

FIELD_MANAGER = "finetune-operator"
PAGE = 500
TRANSIENT = (429, 500, 502, 503, 504)
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
BRIEF = (CONFIGMAPS, SERVICES, EVENTS)
"""When one of these was created, only its metadata comes back: nobody reads more of it."""


@dataclass
class ApiError(Exception):
    """The API server said no."""

    code: int
    reason: str
    message: str
    details: Object = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code} {self.reason}: {self.message}"


class NotFoundError(ApiError):
    """404."""


class ConflictError(ApiError):
    """409: the object exists already, or has changed since it was read."""


class ForbiddenError(ApiError):
    """403: RBAC, a quota or another admission rule."""


class InvalidError(ApiError):
    """422: the object breaks its schema, or a field is immutable."""


class NotLeadingError(Exception):
    """A write was to be sent by an operator that no longer holds the Lease."""


ERRORS: dict[int, type[ApiError]] = {
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    422: InvalidError,
}


def _transient(error: Exception) -> bool:
    if isinstance(error, ApiError):
        return error.code in TRANSIENT
    return isinstance(error, aiohttp.ClientError | TimeoutError | OSError)


class Kube:
    """Requests to the API server. Every method raises ApiError, or what aiohttp raises when nothing answers; those
    that write raise NotLeadingError too."""

    def __init__(self, connection: Connection, metrics: Metrics) -> None:
        self.connection = connection
        """For what is no request about an object."""
        self._metrics = metrics
        self.may_write: Callable[[], bool] = lambda: True
        """Asked before each write is sent, repetitions included. It is the last guard against two operators that
        write: who wakes up from a long pause may have lost the Lease without having noticed."""

    @classmethod
    async def connect(cls, metrics: Metrics) -> Self:
        """A client for wherever the operator runs."""
        return cls(await Connection.open(), metrics)

    async def close(self) -> None:
        await self.connection.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return await self._patiently("get", resource, "GET", resource.path(namespace, name))
        except NotFoundError:
            return None

    async def list_pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> AsyncIterator[list[Object]]:
        """All objects that match, a page at a time; with `metadata_only` nothing but their metadata."""
        query = [("limit", str(PAGE))]
        query += [("labelSelector", labels)] if labels else []
        query += [("fieldSelector", fields)] if fields else []
        accept = METADATA_LIST if metadata_only else "application/json"
        token = ""
        while True:
            page = query + ([("continue", token)] if token else [])
            answer = await self._patiently("list", resource, "GET", resource.path(namespace), page, accept=accept)
            yield cast("list[Object]", answer.get("items") or [])
            token = answer.get("metadata", {}).get("continue") or ""
            if not token:
                return

    async def create(self, resource: Resource, namespace: str | None, body: Object) -> Object:
        """Creates the object. A repetition after a lost answer ends in ConflictError, as for any that exists. Of a
        ConfigMap, a Service or an Event the answer is nothing but the metadata."""
        query = [("fieldManager", FIELD_MANAGER)]
        accept = METADATA if resource in BRIEF else "application/json"
        return await self._patiently("create", resource, "POST", resource.path(namespace), query, body, accept=accept)

    async def apply_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        """Server-side apply of the status; ConflictError when metadata.resourceVersion is not the newest."""
        query = [("fieldManager", FIELD_MANAGER), ("force", "true")]
        path = resource.path(namespace, name, "status")
        content = "application/apply-patch+yaml"
        return await self._patiently("patch", resource, "PATCH", path, query, body, content)

    async def patch(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        """Merge patch; ConflictError when metadata.resourceVersion or metadata.uid in it do not fit."""
        content = "application/merge-patch+json"
        return await self._patiently("patch", resource, "PATCH", resource.path(namespace, name), [], body, content)

    async def patch_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        """Strategic merge patch of the status of a built-in kind, whose conditions are merged by type; ConflictError
        when metadata.uid in it does not fit."""
        content = "application/strategic-merge-patch+json"
        path = resource.path(namespace, name, "status")
        return await self._patiently("patch", resource, "PATCH", path, [], body, content)

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str, propagation: str, grace: int | None = None
    ) -> bool:
        """Deletes the object with this UID. False when it is gone or has been replaced by another. `grace` in seconds;
        None leaves it to the object."""
        body: Object = {"propagationPolicy": propagation, "preconditions": {"uid": uid}}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            await self._patiently("delete", resource, "DELETE", resource.path(namespace, name), [], body)
        except (NotFoundError, ConflictError):
            return False
        return True

    async def _patiently(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        query: list[tuple[str, str]] | None = None,
        body: Object | None = None,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        """A request, repeated a few times where that may help. What is asked for must be safe to ask for twice."""
        async for attempt in stamina.retry_context(
            on=_transient, attempts=4, timeout=45, wait_initial=0.1, wait_max=5, wait_jitter=0.5
        ):
            with attempt:
                return await self._once(verb, resource, method, path, query or [], body, content, accept)
        raise AssertionError("stamina either returns or raises")

    async def _once(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        body: Object | None,
        content: str,
        accept: str,
    ) -> Object:
        code = "error"
        if method != "GET" and not self.may_write():
            raise NotLeadingError(f"no {verb} of {resource.plural}: the Lease is lost")
        try:
            data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
            response = await self.connection.send(
                method, path, query, {"Accept": accept, "Content-Type": content}, data
            )
            code = str(response.status)
        finally:
            self._metrics.api_requests.labels(verb, resource.plural, code).inc()
        answer = _parsed(response.body)
        if response.status >= 300:
            error = ERRORS.get(response.status, ApiError)
            raise error(
                response.status,
                str(answer.get("reason") or response.reason),
                str(answer.get("message") or response.body[:500].decode(errors="replace")),
                answer.get("details") or {},
            )
        return answer


def _parsed(text: bytes) -> Object:
    """The answer as JSON; something between us and the API server may answer otherwise."""
    try:
        answer = json.loads(text)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
