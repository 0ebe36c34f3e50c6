"""What may be removed of what earlier attempts left, and when. A pure rule; Transaction carries it out.

Two attempts at a run can overlap: a pod on a node that the cluster lost may go on working, with the store in reach,
while its successor trains. Nothing of it may be removed that it could still publish, or a manifest.json might name
files that are gone. So:

- An attempt touches only what bears the id of another attempt, and only where that attempt belongs to its own run:
  the record attempts/<id>.json says so, or the run's UID in the key of a checkpoint or of weights on the way.
  manifest.json is never touched.
- An attempt that **ended** by itself said so in its record as its last act: all it left half done goes at once.
- One that is **silent**, whose record is older than fifteen minutes while a living one writes it every minute, was
  killed or is cut off. Its half checkpoints, half exports and half uploads go: if it comes back, its upload fails, and
  a checkpoint without its manifest counts for nobody. Files that it uploaded whole stay: it might come back and claim
  them.
- Any other one **may live**, and nothing of it is touched.
- Once manifest.json is **claimed**, nobody else can publish this run any more: everything of every other attempt goes,
  checkpoints too, and weights on the way that the manifest does not name. What a still living attempt uploads after
  that, it removes itself when its own claim fails.

Ages are differences of the store's own times, never of pods' clocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from finetune_trainer.publish.attempts import FOLDER, Found, attempt_of
from finetune_trainer.publish.on_the_way import RECORD, exports_prefix
from finetune_trainer.publish.store import StoredObject, Unfinished

BEAT_SECONDS = 60.0
"""How often a living attempt writes its record."""
SILENCE_SECONDS = 15 * 60.0
"""Many times as long, so that a store that is away for some minutes makes nobody look dead."""


class Fate(Enum):
    """What is known of an attempt."""

    ENDED = "it said so"
    SILENT = "not heard of for long"
    MAY_LIVE = "heard of lately"


@dataclass(frozen=True)
class Claim:
    """manifest.json as it stands."""

    winner: str
    """The attempt whose files it names."""
    listed: Collection[str]
    """Attempts that it tells of; their records are kept."""
    files: Collection[str] = frozenset()
    """Keys that it names."""


@dataclass(frozen=True)
class Leftovers:
    """What can go."""

    keys: tuple[str, ...]
    uploads: tuple[Unfinished, ...]


def fate_of(found: Found, now: float) -> Fate:
    """`now` is when the store received what was written last, by its own clock."""
    if found.record.ended is not None:
        return Fate.ENDED
    return Fate.SILENT if now - found.modified > SILENCE_SECONDS else Fate.MAY_LIVE


def checkpoints_prefix(run_uid: str) -> str:
    """Where the checkpoints of all attempts at a run are, each in <step>-<attempt>/."""
    return f"checkpoints/{run_uid}/"


def owner_of(key: str, run_uid: str) -> str | None:
    """The attempt whose id `key` bears, its record included. None: it belongs to no attempt, or to another run."""
    for prefix in (checkpoints_prefix(run_uid), exports_prefix(run_uid)):
        if key.startswith(prefix):
            return key.removeprefix(prefix).partition("/")[0].partition("-")[2] or None
    if key.startswith(FOLDER):
        attempt, slash, _ = key.removeprefix(FOLDER).partition("/")
        return attempt if slash else attempt_of(key)
    return None


def leftovers(
    objects: Iterable[StoredObject],
    uploads: Iterable[Unfinished],
    fates: Mapping[str, Fate],
    run_uid: str,
    claim: Claim | None,
) -> Leftovers:
    """What can go of `objects` and `uploads`.

    Args:
        fates: attempts of this run; whoever asks is not among them, unless it gives up what it uploaded itself.
        claim: once there is a manifest.json of this run.
    """
    checkpoints, exports = checkpoints_prefix(run_uid), exports_prefix(run_uid)
    keys = {found.key for found in objects}

    def is_half(key: str, prefix: str, last: str) -> bool:
        return f"{prefix}{key.removeprefix(prefix).partition('/')[0]}/{last}" not in keys

    def can_go(key: str) -> bool:
        owner = owner_of(key, run_uid)
        fate = fates.get(owner or "")
        if claim is not None:
            if key.startswith((checkpoints, exports)):
                return key not in claim.files
            if attempt_of(key):
                return fate is not None and owner not in claim.listed
            return fate is not None and owner != claim.winner
        for prefix, last in ((checkpoints, "manifest.json"), (exports, RECORD)):
            if key.startswith(prefix):
                return fate in (Fate.ENDED, Fate.SILENT) and is_half(key, prefix, last)
        return fate is Fate.ENDED and not attempt_of(key)

    def can_be_aborted(upload: Unfinished) -> bool:
        if claim is not None and upload.key.startswith((checkpoints, exports)):
            return True
        fate = fates.get(owner_of(upload.key, run_uid) or "")
        return fate is not None and (claim is not None or fate is not Fate.MAY_LIVE)

    return Leftovers(
        tuple(sorted(key for key in keys if can_go(key))), tuple(each for each in uploads if can_be_aborted(each))
    )
