"""attempts/<id>.json: what each attempt at a run says of itself, for those that come after it.

An attempt writes its own record and no other's. A killed one cannot say how it ended: its record has no end, and is
as old as its last sign of life.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from finetune_api.progress import Stage
from pydantic import ValidationError

from finetune_trainer.publish.manifest import ManifestAttempt, ManifestModel
from finetune_trainer.publish.store import Store

FOLDER = "attempts/"
KEPT = 20
"""How many records of earlier attempts are read, the newest."""


class AttemptRecord(ManifestModel):
    """One attempt, as it stands in the store."""

    format: Literal["finetune.dev/attempt/v1"] = "finetune.dev/attempt/v1"
    run_uid: str
    """UID of the FineTuneJob."""
    attempt: str
    """UID of the pod; of a group that of its first pod."""
    number: int = 1
    """1 for the first attempt of the run."""
    pod_name: str | None = None
    """Name of the pod."""
    started: str
    """When, in UTC by the pod's clock."""
    stage: Stage = "Starting"
    """What it was doing when this was written."""
    step: int | None = None
    """Optimizer steps that were done by then; none before the training began."""
    resumed_from_step: int | None = None
    """Step at which it went on; none when it began at the start, or not yet."""
    checkpoint_step: int | None = None
    """Step of the last checkpoint that it stored."""
    ended: str | None = None
    """When; none while it works, and for ever when it was killed."""
    exit_code: int | None = None
    """How it ended."""
    message: str = ""
    """Why, for people."""

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return (self.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n").encode()


@dataclass(frozen=True)
class Found:
    """A record, and when its store last received it."""

    record: AttemptRecord
    modified: float


def record_key(attempt: str) -> str:
    """Where the record of `attempt` is, beside the folder with its results."""
    return f"{FOLDER}{attempt}.json"


def attempt_of(key: str) -> str | None:
    """The attempt that the record at `key` speaks of; None when `key` is something else."""
    name = key.removeprefix(FOLDER)
    return name.removesuffix(".json") if key.startswith(FOLDER) and "/" not in name and name.endswith(".json") else None


def read_attempts(store: Store, run_uid: str) -> list[Found]:
    """Records of the run, oldest first: those among the 20 that were written last. What is no record is passed over.

    Raises:
        RunError: the store failed.
    """
    records = sorted((o for o in store.list(FOLDER) if attempt_of(o.key)), key=lambda o: (-o.modified, o.key))
    found = []
    for stored in records[:KEPT]:
        data = store.get_bytes(stored.key)
        try:
            record = AttemptRecord.model_validate_json(data or b"")
        except ValidationError:
            continue
        if record.run_uid == run_uid and record_key(record.attempt) == stored.key:
            found.append(Found(record, stored.modified))
    return sorted(found, key=lambda one: (one.record.number, one.record.started))


def for_manifest(records: Sequence[AttemptRecord]) -> tuple[ManifestAttempt, ...]:
    """The attempts of a run, oldest first, with the steps that each of them lost to the one after it.

    An attempt that ended by itself knows its last step. One that was killed is only known to have done as many as it
    last said: then `lost_steps` is the least it can be.
    """
    trained = [record for record in records if record.step is not None]
    lost: dict[str, int] = {}
    for record, following in pairwise(trained):
        lost[record.attempt] = max(0, (record.step or 0) - (following.resumed_from_step or 0))
    return tuple(
        ManifestAttempt(
            id=record.attempt,
            started=record.started,
            ended=record.ended,
            exit_code=record.exit_code,
            step=record.step,
            resumed_from_step=record.resumed_from_step,
            checkpoint_step=record.checkpoint_step,
            lost_steps=lost.get(record.attempt),
            at_least=True if record.ended is None and record.attempt in lost else None,
        )
        for record in records
    )


def told(record: AttemptRecord) -> str:
    """An earlier attempt in a line for people."""
    where = record.stage if record.step is None else f"step {record.step}"
    if record.ended is None:
        return f"attempt {record.number} ({record.attempt}) was killed, or still works; last heard of at {where}"
    why = f": {record.message}" if record.message else ""
    return f"attempt {record.number} ({record.attempt}) ended with {record.exit_code} at {where}{why}"
