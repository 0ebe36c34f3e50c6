"""A tight asyncio client, the least that Python needs for a request: the floor, and the hand that makes jobs."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

Object = dict[str, Any]
METADATA = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
CONNECTIONS = 64


class Bare:
    """Keep-alive connections to one API server; bodies go as bytes, answers come as bytes."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self._server = config["clusters"][0]["cluster"]["server"]
        self._token = config["users"][0]["user"]["token"]

    async def __aenter__(self) -> Self:
        anyone = ssl.create_default_context()
        anyone.check_hostname = False
        anyone.verify_mode = ssl.CERT_NONE  # the control plane signs its own certificate
        self._session = aiohttp.ClientSession(
            self._server,
            headers={"Authorization": f"Bearer {self._token}"},
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=anyone),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            read_bufsize=2**22,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, method: str, path: str, body: bytes = b"", content: str = "application/json") -> bytes:
        """The answer's body. Raises RuntimeError with it when the API server says no."""
        async with self._session.request(method, path, data=body, headers={"Content-Type": content}) as response:
            answer = await response.read()
            if response.status >= 400:
                raise RuntimeError(f"{method} {path}: {response.status} {answer[:500].decode(errors='replace')}")
            return answer

    async def create(self, path: str, body: Object) -> Object:
        return dict(json.loads(await self.send("POST", path, json.dumps(body).encode())))

    async def merge(self, path: str, body: Object) -> Object:
        answer = await self.send("PATCH", path, json.dumps(body).encode(), "application/merge-patch+json")
        return dict(json.loads(answer))

    async def list(self, path: str, query: str = "", metadata: bool = False) -> list[Object]:
        """All objects, in one answer."""
        accept = METADATA.format("List") if metadata else "application/json"
        async with self._session.get(f"{path}?{query}", headers={"Accept": accept}) as response:
            response.raise_for_status()
            return list(json.loads(await response.read())["items"] or [])

    async def version(self, path: str) -> str:
        """resourceVersion of the collection as it is now: where a watch may begin."""
        async with self._session.get(f"{path}?limit=1") as response:
            response.raise_for_status()
            return str(json.loads(await response.read())["metadata"]["resourceVersion"])

    async def watch(self, path: str, version: str, metadata: bool = False) -> AsyncIterator[Object]:
        """Watch events, from `version` on, until the caller has had enough. The API server hangs up on who reads too
        slowly: the stream is then taken up where it ended. Raises RuntimeError when the API server no longer can."""
        accept = METADATA.format("") if metadata else "application/json"
        while True:
            query = {"watch": "1", "resourceVersion": version}
            async with self._session.get(path, params=query, headers={"Accept": accept}) as response:
                response.raise_for_status()
                async for line in response.content:
                    event = dict(json.loads(line))
                    if event["type"] == "ERROR":
                        raise RuntimeError(f"the watch of {path} broke: {event['object']}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    yield event


async def concurrently(jobs: Iterable[Any], width: int) -> None:
    """Awaits all, `width` at a time."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(work())
