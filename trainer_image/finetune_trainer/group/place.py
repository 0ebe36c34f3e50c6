"""Where a pod stands in its group."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api import TrainingRun

from finetune_trainer.errors import ConfigurationError
from finetune_trainer.group.seat import Seat
from finetune_trainer.settings import Settings


@dataclass(frozen=True)
class Place:
    """This pod in its group."""

    nodes: int
    per_node: int
    node: int
    """0 … nodes - 1."""
    host: str
    """Where the pod of rank 0 is reached."""
    port: int
    """Where it listens for the others."""
    patience: float
    """Seconds of silence after which another pod counts as lost."""
    run: str
    """SHA-256 of the TrainingRun."""
    attempt: str
    """Of this pod; that of rank 0's pod is the group's generation."""

    def seats(self, generation: str, store_port: int, store_fd: int | None = None) -> list[Seat]:
        """Of this pod's processes."""
        first = self.node * self.per_node
        return [
            Seat(
                rank=first + local,
                size=self.nodes * self.per_node,
                local_rank=local,
                generation=generation,
                store_host="127.0.0.1" if self.node == 0 else self.host,
                store_port=store_port,
                store_fd=store_fd if first + local == 0 else None,
            )
            for local in range(self.per_node)
        ]


def place_of(run: TrainingRun, digest: str, settings: Settings) -> Place | None:
    """This pod's place in the group of `run`; None for a run of one process.

    Raises:
        ConfigurationError: the run has several nodes, and nothing says which one this is.
    """
    engine = run.engine
    if engine.nodes == engine.processes_per_node == 1:
        return None
    if engine.nodes > 1 and (settings.node is None or settings.group_host is None):
        raise ConfigurationError(
            f"spec.engine.nodes is {engine.nodes}, but neither FINETUNE_NODE nor FINETUNE_GROUP_HOST says which of "
            "them this machine is; let the operator run it, or set nodes to 1"
        )
    node = settings.node or 0
    if node >= engine.nodes:
        raise ConfigurationError(f"FINETUNE_NODE is {node}, but spec.engine.nodes is {engine.nodes}")
    return Place(
        nodes=engine.nodes,
        per_node=engine.processes_per_node,
        node=node,
        host=settings.group_host or "127.0.0.1",
        port=settings.group_port,
        patience=settings.peer_seconds,
        run=digest,
        attempt=settings.attempt,
    )
