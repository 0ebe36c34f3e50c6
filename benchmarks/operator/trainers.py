"""Trainers that pretend: real HTTP answers at an address of their own for each pod, some silent, some not there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
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
    asked: dict[str, list[float]] = field(default_factory=dict)
    """Address → monotonic seconds of each question."""
    _began: float = field(default_factory=time.monotonic)

    async def start(self) -> list[asyncio.Server]:
        """Listens. The caller closes what is returned."""
        return [await self._listen(list(self.pods), self._answer), await self._listen(self.silent, self._ignore)]

    async def _listen(self, hosts: list[str], handle: Callable[..., object]) -> asyncio.Server:
        return await asyncio.start_server(handle, hosts, self.port, backlog=64)

    def _note(self, writer: asyncio.StreamWriter) -> str:
        host = str(writer.get_extra_info("sockname")[0])
        self.asked.setdefault(host, []).append(time.monotonic())
        return host

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = self._note(writer)
        request = await reader.readuntil(b"\r\n\r\n")
        run, pod = self.pods[host]
        step = int(time.monotonic() - self._began) + 1
        said = {"runUid": run, "podUid": pod, "stage": "Training", "step": step, "totalSteps": STEPS, "loss": 1 / step}
        body = json.dumps(said).encode()
        right = request.startswith(b"GET /progress ")
        head = f"HTTP/1.1 {'200 OK' if right else '404 Not Found'}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async def _ignore(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._note(writer)
        await reader.read()  # until the other side gives up
        writer.close()
