"""A reverse proxy between one operator and the real API server: it writes down every request, and misbehaves on
command. Faults happen on a real wire to a real process, so that nothing in the operator need be replaced."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import aiohttp
import yaml
from aiohttp import web

T = TypeVar("T")
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailers", "transfer-encoding", "upgrade", "host", "content-length"}
WRITES = ("create", "update", "patch", "delete", "deletecollection")
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Right(NamedTuple):
    """What RBAC speaks of."""

    group: str
    resource: str
    """With the subresource, as in `pods/status`."""
    verb: str


@dataclass
class Request:
    """One request of the operator. `status` is None until it is answered, and for good if it never was."""

    at: float
    """Monotonic seconds at which it came."""
    right: Right | None
    """None for paths that name no resource, such as /apis."""
    namespace: str
    name: str
    path: str
    status: int | None = None
    message: str = ""
    """What the API server said with a refusal."""

    @property
    def writes(self) -> bool:
        """Whether it changes anything but the Lease."""
        return self.right is not None and self.right.verb in WRITES and self.right.resource != "leases"


@dataclass
class Gate:
    """Requests that match wait here until it is opened. They are passed on then, even if who sent them is gone."""

    match: Callable[[Request], bool]
    opened: asyncio.Event
    waiting: list[Request] = field(default_factory=list)


@dataclass
class Stream:
    """One open watch."""

    task: asyncio.Task[Any]
    response: web.StreamResponse
    deaf: bool


class Proxy:
    """Runs in a thread of its own, from `with` to its end. One for each operator."""

    def __init__(self, upstream: Path) -> None:
        """`upstream`: a kubeconfig for the API server. The clients bring their own tokens."""
        cluster = yaml.safe_load(upstream.read_text())["clusters"][0]["cluster"]
        self._server = str(cluster["server"])
        self._tls = ssl.create_default_context()
        if authority := cluster.get("certificate-authority-data"):
            self._tls.load_verify_locations(cadata=base64.b64decode(authority).decode())
        else:
            self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self.requests: list[Request] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._gates: list[Gate] = []
        self._failing = 0
        self._deaf = False
        self._streams: list[Stream] = []
        self._transports: set[asyncio.Transport] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def kubeconfig(self, client: Path) -> Path:
        """`client`, a kubeconfig, with this proxy for a server."""
        found = yaml.safe_load(client.read_text())
        for entry in found["clusters"]:
            entry["cluster"] = {"server": f"http://127.0.0.1:{self.port}"}
        target = client.with_name(f"{client.name}-{self.port}")
        target.touch(mode=0o600)
        target.write_text(yaml.safe_dump(found))
        return target

    def used(self) -> set[Right]:
        """Every right that was asked for so far."""
        return {request.right for request in list(self.requests) if request.right is not None}

    def writes(self) -> list[Request]:
        """What was to be changed, apart from the Lease, in order."""
        return [request for request in list(self.requests) if request.writes]

    def deafen(self) -> None:
        """From now on no watch brings anything: connections stay open, new ones are accepted, all are silent."""
        self._do(self._set_deaf(True))

    def hear(self) -> None:
        """New watches work again. Those that were silenced stay so: what a dead connection lost is lost."""
        self._do(self._set_deaf(False))

    def drop_watches(self) -> None:
        """Breaks every open watch."""
        self._do(self._drop_watches())

    def say(self, event: dict[str, Any]) -> None:
        """Brings this event through every open watch, as if the API server had sent it."""
        self._do(self._say(json.dumps(event).encode() + b"\n"))

    def fail(self, status: int) -> None:
        """Answers everything with this status, without asking the API server. 0: works again."""
        self._failing = status

    def refuse(self) -> None:
        """Breaks all connections and accepts no more."""
        self._do(self._refuse())

    def accept(self) -> None:
        """Ends `refuse`."""
        self._do(self._listen())

    def hold(self, match: Callable[[Request], bool]) -> Gate:
        """Requests that match are held back from now on, until `open`."""
        gate = Gate(match, asyncio.Event())
        self._gates.append(gate)
        return gate

    def open(self, gate: Gate) -> None:
        """Lets through what waits at the gate, and everything after it."""
        self._gates.remove(gate)
        self._loop.call_soon_threadsafe(gate.opened.set)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(15)

    async def _start(self) -> None:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        own = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
        self._client = aiohttp.ClientSession(connector=connector, auto_decompress=False, skip_auto_headers=own)
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await self._listen()

    async def _stop(self) -> None:
        for gate in self._gates:
            gate.opened.set()
        await self._drop_watches()
        await self._runner.cleanup()
        await self._client.close()

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await self._site.start()
        self.port = self.port or int(self._runner.addresses[0][1])

    async def _refuse(self) -> None:
        await self._site.stop()
        for transport in list(self._transports):
            transport.abort()

    async def _set_deaf(self, deaf: bool) -> None:
        self._deaf = deaf
        for stream in self._streams:
            stream.deaf = stream.deaf or deaf

    async def _drop_watches(self) -> None:
        for stream in self._streams:
            stream.task.cancel()

    async def _say(self, line: bytes) -> None:
        for stream in list(self._streams):
            with suppress(ConnectionError):  # one whose reader has gone
                await stream.response.write(line)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if isinstance(transport, asyncio.Transport):
            self._transports = {other for other in self._transports if not other.is_closing()} | {transport}
        noted = note(request.method, request.path, request.query.get("watch") in ("true", "1"))
        self.requests.append(noted)
        body = await request.read()
        for gate in [gate for gate in self._gates if gate.match(noted)]:
            gate.waiting.append(noted)
            await gate.opened.wait()
        if self._failing:
            noted.status = self._failing
            reason = {"kind": "Status", "status": "Failure", "code": self._failing, "message": "the proxy says no"}
            return web.json_response(reason, status=self._failing)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        url = f"{self._server}{request.raw_path}"
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._client.request(
            request.method, url, data=body or None, headers=headers, timeout=timeout
        ) as answer:
            noted.status = answer.status
            response = web.StreamResponse(status=answer.status, headers=kept(answer.headers))
            if noted.right is not None and noted.right.verb == "watch":
                return await self._watch(request, answer, response)
            content = await answer.read()
            if answer.status >= 400:
                noted.message = content.decode(errors="replace")[:1000]
            response.content_length = len(content)
            with suppress(ConnectionError):  # who asked may have gone
                await response.prepare(request)
                await response.write(content)
            return response

    async def _watch(
        self, request: web.Request, answer: aiohttp.ClientResponse, response: web.StreamResponse
    ) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        await response.prepare(request)
        stream = Stream(task, response, self._deaf)
        self._streams.append(stream)
        try:
            async for chunk in answer.content.iter_any():
                if not stream.deaf:
                    await response.write(chunk)
            if stream.deaf:
                await asyncio.Event().wait()  # a dead connection does not even tell that the other end hung up
        except ConnectionError:
            return response  # its reader has gone
        except asyncio.CancelledError:
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._streams.remove(stream)
        return response


def kept(headers: Any) -> dict[str, str]:
    """Headers of an answer that are meant for its final reader."""
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}


def note(method: str, path: str, watch: bool) -> Request:
    """What a request is, in RBAC's words."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, rest = "", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, rest = parts[1], parts[3:]
    else:
        return Request(time.monotonic(), None, "", "", path)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    if method == "GET":
        verb = "get" if name else "watch" if watch else "list"
    else:
        verb = "deletecollection" if method == "DELETE" and not name else VERBS[method]
    resource = f"{rest[0]}/{rest[2]}" if len(rest) > 2 else rest[0]
    return Request(time.monotonic(), Right(group, resource, verb), namespace, name, path)
