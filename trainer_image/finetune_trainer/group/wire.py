"""How the pods of a group talk: JSON objects, one a line, over one TCP connection of each pod to that of rank 0.

An empty object is a heartbeat. The connection is the proof of life in both directions: it ends with the process, and
it is silent when the pod is frozen or the network gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

BEATS = 10
"""Heartbeats within the time after which silence counts as loss."""
LONGEST_LINE = 16 * 1024


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hello(_Message):
    """A pod to rank 0's: I am node `node` of the group of this run."""

    kind: Literal["hello"] = "hello"
    run: str
    """SHA-256 of the TrainingRun."""
    node: Annotated[int, Field(ge=1)]


class Begin(_Message):
    """Rank 0's pod to all: the group is complete."""

    kind: Literal["begin"] = "begin"
    generation: str
    store_port: int


class Stop(_Message):
    """Both ways: somebody was asked to stop, so all are."""

    kind: Literal["stop"] = "stop"


class Ended(_Message):
    """A pod to rank 0's: one of my processes ended."""

    kind: Literal["ended"] = "ended"
    rank: int
    code: int
    message: str = ""


class Frozen(_Message):
    """A pod to rank 0's: one of my processes is frozen."""

    kind: Literal["frozen"] = "frozen"
    rank: int


class End(_Message):
    """Rank 0's pod to another: so you end."""

    kind: Literal["end"] = "end"
    code: int
    message: str = ""


Message = Hello | Begin | Stop | Ended | Frozen | End
_parse: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


class Lost(Exception):
    """The other side is gone. Its text says how."""


class Line:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float) -> None:
        """`patience`: seconds of silence after which the other side counts as lost."""
        self._reader, self._writer, self._patience = reader, writer, patience
        self._beating = asyncio.create_task(self._beat())

    def send(self, message: Message) -> None:
        """Never waits; what cannot be sent is lost with the connection."""
        self._write(message.model_dump())

    async def messages(self) -> AsyncIterator[Message]:
        """What the other side says. Raises Lost."""
        while True:
            try:
                async with asyncio.timeout(self._patience):
                    line = await self._reader.readline()
            except TimeoutError:
                raise Lost(f"no heartbeat for {self._patience:g} s") from None
            except (OSError, ValueError) as error:
                raise Lost(str(error) or type(error).__name__) from error
            if not line.endswith(b"\n"):
                raise Lost("its process ended")
            if line.strip() == b"{}":
                continue
            try:
                yield _parse.validate_json(line)
            except ValidationError as error:
                raise Lost("it speaks another language") from error

    async def close(self) -> None:
        """Sends what is left, then hangs up."""
        self._beating.cancel()
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._patience / BEATS):
                await self._writer.wait_closed()

    def _write(self, value: dict[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(value).encode() + b"\n")

    async def _beat(self) -> None:
        while True:
            self._write({})
            await asyncio.sleep(self._patience / BEATS)
