"""Trainers that pretend: real HTTP answers at an address of their own for each pod, some silent, some not there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

STEPS = 100_000


def address(number: int) -> str:
    """An address of this machine's loopback network for the pod of this number."""
    return f"127.{1 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"


@dataclass
class Trainers:
    """Answer GET /progress as the pods at their addresses: the step grows by one each second."""

    port: int
    pods: dict[str, tuple[str, str]]
    """Address → (UID of the FineTuneJob, UID of the pod) of those that answer."""
    silent: list[str]
    """Addresses that accept connections and never say a word."""
    _began: float = field(default_factory=time.monotonic)

    async def start(self) -> list[asyncio.Server]:
        """Listens. The caller closes what is returned."""
        return [await self._listen(list(self.pods), self._answer), await self._listen(self.silent, self._ignore)]

    async def _listen(self, hosts: list[str], handle: Callable[..., object]) -> asyncio.Server:
        return await asyncio.start_server(handle, hosts, self.port, backlog=64)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = str(writer.get_extra_info("sockname")[0])
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # who asks may have lost patience
            request = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._said(host, request))
            await writer.drain()
        writer.close()

    def _said(self, host: str, request: bytes) -> bytes:
        run, pod = self.pods[host]
        step = int(time.monotonic() - self._began) + 1
        said = {"runUid": run, "podUid": pod, "stage": "Training", "step": step, "totalSteps": STEPS, "loss": 1 / step}
        body = json.dumps(said).encode()
        status = "200 OK" if request.startswith(b"GET /progress ") else "404 Not Found"
        return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def _ignore(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()  # until the other side gives up
        writer.close()
