"""What becomes of a group, from what happens to its processes. Pure: it hears events and is asked for decisions.

| what happens | this pod's exit code | the other pods' |
| --- | --- | --- |
| rank 0 ends well: the manifest is published | 0 | 0 |
| a process is asked to stop | 75 everywhere, after the same step | 75 |
| a process says that data or configuration are bad | 65 or 78 | the first pod's the same, the others' 76 |
| a process fails or is killed | its own code | 76 |
| a pod is gone, silent or frozen | 76 | 76 |

So one mishap counts once against the retries, and a user's mistake is told by the pod that the operator listens to.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api import ExitCode

SETTLING_SECONDS = 3.0
"""A process that loses a peer may well end with an error before anybody knows why; so long the reason is waited for."""
TERMINATED = 128 + 15


@dataclass(frozen=True)
class RankEnded:
    """A process ended; `code` is 128 + n when signal n killed it."""

    rank: int
    code: int
    message: str = ""


@dataclass(frozen=True)
class RankFrozen:
    """A process is there and does nothing."""

    rank: int


@dataclass(frozen=True)
class NodeLost:
    """The connection to a pod is gone, or silent for too long."""

    node: int
    why: str


@dataclass(frozen=True)
class StopAsked:
    """SIGTERM or Ctrl-C, in any pod."""


Event = RankEnded | RankFrozen | NodeLost | StopAsked


@dataclass(frozen=True)
class Ending:
    """How each pod is to end; processes that still run are killed."""

    codes: tuple[int, ...]
    """By node."""
    message: str = ""


class Conduct:
    """Knows of the whole group; lives in the pod of rank 0."""

    def __init__(self, nodes: int, per_node: int) -> None:
        self._nodes, self._per_node = nodes, per_node
        self._ended: dict[int, RankEnded] = {}
        self._suspect: tuple[RankEnded, float] | None = None
        self.stopping = False
        """Every process is to be asked to stop."""
        self.ending: Ending | None = None
        """Once it is set, nothing changes it."""

    @property
    def settles_at(self) -> float | None:
        """When `settle` must be called, on the clock of `hear`."""
        return None if self._suspect is None else self._suspect[1]

    def hear(self, event: Event, now: float) -> None:
        """Takes `event` in; `now` is any clock in seconds."""
        if self.ending is not None:
            return
        if isinstance(event, StopAsked):
            self.stopping = True
        elif isinstance(event, RankFrozen):
            self._lost(f"process {event.rank} is frozen")
        elif isinstance(event, NodeLost):
            self._node_lost(event)
        else:
            self._rank_ended(event, now)

    def settle(self) -> None:
        """Nobody explained why the first process failed: it was its own error."""
        if self._suspect is not None and self.ending is None:
            self._blame(self._suspect[0])

    def _rank_ended(self, event: RankEnded, now: float) -> None:
        if event.rank in self._ended:
            return
        self._ended[event.rank] = event
        if event.rank == 0 and event.code == ExitCode.DONE:
            self.ending = Ending((0,) * self._nodes)
        elif event.code in (ExitCode.BAD_DATA, ExitCode.BAD_CONFIGURATION):
            self._blame(event, also=0)
        elif event.code == ExitCode.INTERRUPTED:
            self.stopping = True
        elif event.code in (ExitCode.ERROR, ExitCode.PEER_LOST):
            if self._suspect is None:
                self._suspect = (event, now + SETTLING_SECONDS)
        elif event.code != ExitCode.DONE and not self.stopping:
            self._blame(event)
        if self.stopping:
            # whoever still runs is saving, and must not be killed for those who have left
            self._suspect = None
            self._stopped()

    def _node_lost(self, event: NodeLost) -> None:
        ranks = range(event.node * self._per_node, (event.node + 1) * self._per_node)
        if all(rank in self._ended for rank in ranks):
            return
        if self.stopping:
            for rank in ranks:
                self._ended.setdefault(rank, RankEnded(rank, ExitCode.PEER_LOST))
            self._stopped()
        else:
            self._lost(f"node {event.node} of the group is lost ({event.why})")

    def _lost(self, message: str) -> None:
        self.ending = Ending((ExitCode.PEER_LOST,) * self._nodes, message)

    def _blame(self, event: RankEnded, also: int | None = None) -> None:
        """Its pod, and that of node `also`, end with the process's code."""
        guilty = (event.rank // self._per_node, also)
        codes = [event.code if node in guilty else ExitCode.PEER_LOST for node in range(self._nodes)]
        how = event.message or f"ended with exit code {event.code}"
        # what a user has to mend does not depend on who found it
        message = how if also is not None else f"process {event.rank} of the group: {how}"
        self.ending = Ending(tuple(map(int, codes)), message)

    def _stopped(self) -> None:
        if self.ending is not None or len(self._ended) < self._nodes * self._per_node:
            return
        # 143: the signal came before the process could listen
        well = (ExitCode.DONE, ExitCode.INTERRUPTED, TERMINATED)
        codes = [ExitCode.INTERRUPTED] * self._nodes
        for rank, end in self._ended.items():
            if end.code not in well:
                codes[rank // self._per_node] = ExitCode.PEER_LOST
        self.ending = Ending(tuple(map(int, codes)), "stopped with its group; the same run goes on from its checkpoint")
