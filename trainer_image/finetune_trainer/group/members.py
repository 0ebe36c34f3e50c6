"""The other pods of a group, as rank 0's pod knows them."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from finetune_trainer.group.conduct import Event, NodeLost, RankEnded, RankFrozen, StopAsked
from finetune_trainer.group.place import Place
from finetune_trainer.group.wire import Ended, Frozen, Hello, Line, Lost, Message, Stop

log = logging.getLogger("finetune")


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` ("" for all addresses of both families) and `port` (0 for a free one)."""
    if host == "" and socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=False)
    return socket.create_server((host, port))


class Members:
    """Connections by node. `report` hears what their pods say of themselves, once the group has begun."""

    def __init__(self, place: Place, report: Callable[[Event], None]) -> None:
        self._place, self._report = place, report
        self._lines: dict[int, Line] = {}
        self._begun = False
        self._stopped = False
        self.complete = asyncio.Event()
        """All are here."""

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Listens for the others."""
        server = await asyncio.start_server(self._hear, sock=listening("", self._place.port))
        try:
            yield
        finally:
            server.close()
            await asyncio.gather(*(line.close() for line in self._lines.values()))

    def begin(self, message: Message) -> None:
        """The group is complete; from now on who leaves is missed."""
        self._begun = True
        for node in self._lines:
            self.send(node, message)

    def stop(self) -> None:
        """Asks all to stop, once."""
        if not self._stopped:
            self._stopped = True
            for node in self._lines:
                self.send(node, Stop())

    def send(self, node: int, message: Message) -> None:
        """Says `message` to the pod of `node`."""
        self._lines[node].send(message)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer, self._place.patience)
        node = 0
        try:
            messages = line.messages()
            node = self._checked(await anext(messages))
            if self._begun:
                # a Job starts a pod anew only when the one before it is gone, whatever its connection says
                self._report(NodeLost(node, "another pod took its place"))
                return
            self._lines[node] = line
            self._count()
            async for message in messages:
                self._take(node, message)
        except Lost as lost:
            if self._lines.get(node) is not line:
                log.info("a connection to the group's port came to nothing: %s", lost)
            elif self._begun:
                self._report(NodeLost(node, str(lost)))
            else:
                del self._lines[node]
                self._count()
        finally:
            await line.close()

    def _checked(self, hello: Message) -> int:
        if not isinstance(hello, Hello) or hello.run != self._place.run or hello.node >= self._place.nodes:
            raise Lost("it is not of this group")
        return hello.node

    def _take(self, node: int, message: Message) -> None:
        if isinstance(message, Ended):
            self._report(RankEnded(message.rank, message.code, message.message))
        elif isinstance(message, Frozen):
            self._report(RankFrozen(message.rank))
        elif isinstance(message, Stop):
            self._report(StopAsked())
        else:
            raise Lost(f"it says {message.kind}, which is not its business")

    def _count(self) -> None:
        if len(self._lines) == self._place.nodes - 1:
            self.complete.set()
        else:
            self.complete.clear()
