"""`finetune run` of a group: PID 1 of each pod. It starts the pod's processes, hears what becomes of them and of the
other pods, and ends as the group ends. It imports no torch: nothing here is slow, so silence means trouble.

The pod of rank 0 decides (conduct.py); the others tell it what happens to them and do what it says.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finetune_api import ExitCode, Result

from finetune_trainer.errors import Interrupted, PeerLost
from finetune_trainer.group.conduct import Conduct, Event, NodeLost, RankEnded, RankFrozen, StopAsked
from finetune_trainer.group.members import Members, listening
from finetune_trainer.group.place import Place
from finetune_trainer.group.ranks import Ranks
from finetune_trainer.group.wire import Begin, End, Ended, Frozen, Hello, Line, Lost, Message, Stop

log = logging.getLogger("finetune")

T = TypeVar("T")

MEETING_SECONDS = 900.0
"""How long a pod waits for the others of its group. Longer than a big image takes to arrive; a group that has not met
by then starts again, in case one of the waiting pods is what keeps the others out."""
SECONDS_BETWEEN_CALLS = 1.0


@dataclass(frozen=True)
class PodEnd:
    """How this pod ends."""

    code: int
    message: str
    result: Result | None = None
    """What rank 0 left, in its pod; it may have ended otherwise than the group."""


def supervise(place: Place, arguments: Sequence[str]) -> PodEnd:
    """Carries this pod's part of a group through, to its end.

    Args:
        arguments: of the command `finetune`, for each of this pod's processes.

    Raises:
        Interrupted: asked to stop before the group had begun.
        PeerLost: the group did not come together.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-group-") as folder:
        return asyncio.run(_supervise(place, arguments, Path(folder)))


async def _supervise(place: Place, arguments: Sequence[str], scratch: Path) -> PodEnd:
    events: asyncio.Queue[Event | Message] = asyncio.Queue()
    ranks = Ranks(arguments, scratch, place.patience, events.put_nowait)
    part = asyncio.create_task((_lead if place.node == 0 else _follow)(place, ranks, events))
    asked: list[signal.Signals] = []

    def ask(number: signal.Signals) -> None:
        # a kubelet asks once; a person who asks again does not want to wait
        if asked:
            part.cancel()
        asked.append(number)
        events.put_nowait(StopAsked())

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ask, number)
    try:
        return await part
    except asyncio.CancelledError:
        return PodEnd(128 + asked[-1], "ended before the state was saved")
    finally:
        await ranks.kill()


async def _lead(place: Place, ranks: Ranks, events: asyncio.Queue[Event | Message]) -> PodEnd:
    conduct = Conduct(place.nodes, place.per_node)
    members = Members(place, events.put_nowait)
    async with AsyncExitStack() as stack:
        if place.nodes > 1:
            await stack.enter_async_context(members.served())
            await _meeting(members.complete.wait(), events)
        with listening("" if place.nodes > 1 else "127.0.0.1", 0) as store:
            port = store.getsockname()[1]
            members.begin(Begin(generation=place.attempt, store_port=port))
            await ranks.start(place.seats(place.attempt, port, store.fileno()))
        while conduct.ending is None:
            try:
                async with asyncio.timeout_at(conduct.settles_at):
                    event = await events.get()
            except TimeoutError:
                conduct.settle()
                continue
            assert isinstance(event, Event), "messages are for those who follow"
            conduct.hear(event, asyncio.get_running_loop().time())
            if conduct.stopping:
                ranks.stop()
                members.stop()
        ending = conduct.ending
        for node in range(1, place.nodes):
            members.send(node, End(code=ending.codes[node], message=ending.message))
    return PodEnd(ending.codes[0], ending.message, ranks.last_words(0))


async def _follow(place: Place, ranks: Ranks, events: asyncio.Queue[Event | Message]) -> PodEnd:
    line, begin = await _meeting(_join(place), events)
    hearing = asyncio.create_task(_pass_on(line, events))
    left = set(range(place.per_node))
    try:
        await ranks.start(place.seats(begin.generation, begin.store_port))
        while True:
            event = await events.get()
            if isinstance(event, End):
                return PodEnd(event.code, event.message)
            if isinstance(event, NodeLost):
                return PodEnd(ExitCode.PEER_LOST, f"the pod of rank 0 is lost ({event.why})")
            if isinstance(event, Stop | StopAsked):
                ranks.stop()
            if isinstance(event, StopAsked):
                line.send(Stop())
            elif isinstance(event, RankFrozen):
                line.send(Frozen(rank=event.rank))
            elif isinstance(event, RankEnded):
                line.send(Ended(rank=event.rank, code=event.code, message=event.message))
                if event.code == ExitCode.INTERRUPTED:
                    left.discard(event.rank % place.per_node)
                if not left:
                    # nothing more to do here, and a pod that is to go should go
                    return PodEnd(event.code, event.message)
    finally:
        hearing.cancel()
        await line.close()


async def _pass_on(line: Line, events: asyncio.Queue[Event | Message]) -> None:
    try:
        async for message in line.messages():
            events.put_nowait(message)
    except Lost as lost:
        events.put_nowait(NodeLost(0, str(lost)))


async def _join(place: Place) -> tuple[Line, Begin]:
    """Calls the pod of rank 0 until it says that the group is complete. It may not be there yet, or be one that has
    lost its group and does not know."""
    told = ""
    while True:
        line = None
        try:
            async with asyncio.timeout(place.patience):
                reader, writer = await asyncio.open_connection(place.host, place.port)
            line = Line(reader, writer, place.patience)
            line.send(Hello(run=place.run, node=place.node))
            begin = await anext(line.messages())
            if isinstance(begin, Begin):
                return line, begin
            why = f"it says {begin.kind}"
        except (OSError, TimeoutError, Lost) as error:
            why = str(error) or type(error).__name__
        if line is not None:
            await line.close()
        if why != told:
            log.info("waiting for the group at %s:%d (%s)", place.host, place.port, why)
            told = why
        await asyncio.sleep(SECONDS_BETWEEN_CALLS)


async def _meeting(coming: Coroutine[Any, Any, T], events: asyncio.Queue[Event | Message]) -> T:
    """What `coming` returns, unless it takes too long or the pod is asked to stop."""
    meeting, asked = asyncio.create_task(coming), asyncio.create_task(events.get())
    try:
        await asyncio.wait((meeting, asked), timeout=MEETING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            raise Interrupted("stopped while waiting for the group; the same run goes on from its checkpoint")
        if meeting.done():
            return meeting.result()
        raise PeerLost(f"the group did not come together within {MEETING_SECONDS:g} s")
    finally:
        for task in (meeting, asked):
            task.cancel()
