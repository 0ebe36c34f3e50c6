"""What is computed once and found again by later runs: a folder on a disk that several pods may share.

The rules are the same for all that is kept. An entry is a file or a folder of files named by the digest of all that it
depends on, so that nobody ever writes anything else under a name. It appears whole, by a rename; of two writers the
last wins, and both wrote the same. What was used last stays longest: reading an entry makes it young, by the time in
its file, which needs no file of its own and no lock. When there is more than the bound allows, the oldest go until a
tenth of it is free. Each pod counts what it writes and looks at the folder now and then, so that the bound is kept to
within what the pods write between two looks.

Whatever goes wrong with a cache costs time and nothing else: what cannot be read is computed, and what cannot be
written is not kept.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from finetune_trainer.data.whole_files import TEMPORARY, write_whole

log = logging.getLogger("finetune")
T = TypeVar("T")

MOST = 16 * 2**30
"""Bytes of one cache, where the disk is large."""
SHARE = 5
"""Of a smaller disk a cache takes a fifth: it shares it with models, with checkpoints and with other caches."""
FREED = 10
"""A tenth of the bound is freed at once, so that not each new entry looks at all others."""
LOOKS = 16
"""How often the folder is looked at while as much is written as the bound allows."""
ABANDONED_SECONDS = 3600.0
"""A temporary file as old as this has nobody who still writes to it."""


@dataclass(frozen=True)
class Entry:
    """A file or folder in a cache."""

    name: str
    size: int
    """Bytes."""
    used: float
    """When, in seconds since 1970 by the disk's clock."""


def to_go(entries: Sequence[Entry], limit: int, keep_since: float) -> list[Entry]:
    """Which of `entries` must go for the rest to be within `limit` bytes: none where they are; else the least recently
    used until a tenth of `limit` is free. Those used after `keep_since` stay, whatever they take."""
    excess = sum(entry.size for entry in entries) - limit
    gone: list[Entry] = []
    if excess <= 0:
        return gone
    excess += limit // FREED
    for entry in sorted(entries, key=lambda one: (one.used, one.name)):
        if excess <= 0 or entry.used > keep_since:
            break
        gone.append(entry)
        excess -= entry.size
    return gone


def bound(disk_bytes: int) -> int:
    """Bytes that a cache may take on a disk of that size."""
    return min(MOST, disk_bytes // SHARE)


class DiskCache:
    """One folder of entries of a kind."""

    def __init__(self, folder: Path, limit: int | None = None, in_use_seconds: float = 0.0) -> None:
        """
        Args:
            folder: nothing else is in it. Made when it is first written to.
            limit: bytes; None for what suits the disk.
            in_use_seconds: for so long nobody removes what was used, because a run may still come back to it.
        """
        self._folder, self._limit, self._in_use = folder, limit, in_use_seconds
        self._unseen: int | None = None
        """Bytes written since the last look; None before the first."""
        self._warned = False

    def path(self, name: str) -> Path:
        """Where the entry `name` is, if it is there."""
        return self._folder / name

    def read(self, name: str, load: Callable[[Path], T]) -> T | None:
        """What `load` makes of the entry; None where there is none. What cannot be read counts as none."""
        path = self.path(name)
        try:
            found = load(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # libraries raise what they like about a damaged file
            self._warn(f"{path} cannot be read and is made anew: {error}")
            return None
        self.touch(name)
        return found

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Lets `write` fill the file of the entry `name`."""
        path = self.path(name)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, write)
            size = path.stat().st_size
        except Exception as error:  # a full disk has as many names as there are libraries that write
            self._warn(f"{path} is not kept: {error}")
            self.sweep()
            return
        self.wrote(size)

    def touch(self, name: str) -> None:
        """The entry was used now."""
        try:
            os.utime(self.path(name))
        except OSError:
            return  # another pod removed it, or it may only be read

    def wrote(self, size: int) -> None:
        """So many bytes more are in the folder. Looks at it when it is time."""
        if self._unseen is not None:
            self._unseen += size
        if self._unseen is None or self._unseen * LOOKS > self._bound:
            self.sweep()

    def sweep(self) -> None:
        """Looks at the folder, and removes what must go."""
        self._unseen = 0
        entries = self._entries()
        if entries:
            for entry in to_go(entries, self._bound, time.time() - self._in_use):
                self._remove(entry.name)

    @property
    def _bound(self) -> int:
        if self._limit is None:
            self._limit = bound(shutil.disk_usage(self._folder).total)
        return self._limit

    def _entries(self) -> list[Entry]:
        found = []
        try:
            paths = list(self._folder.iterdir())
        except OSError:
            return []
        for path in paths:
            try:
                stat = path.stat()
                if self._is_half_written(path):
                    continue
                files = [one for one in path.iterdir() if not self._is_half_written(one)] if path.is_dir() else [path]
                size = sum(one.stat().st_size for one in files)
            except OSError:
                continue  # removed a moment ago by another pod
            found.append(Entry(path.name, size, stat.st_mtime))
        return found

    def _is_half_written(self, path: Path) -> bool:
        """Then it counts for nobody, and is removed where its writer was killed. Raises OSError."""
        if not path.name.endswith(TEMPORARY):
            return False
        if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
            self._remove(str(path.relative_to(self._folder)))
        return True

    def _remove(self, name: str) -> None:
        """A folder disappears at once too: by a rename, for others may be looking into it."""
        path = self.path(name)
        try:
            if path.is_dir():
                path = path.rename(path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}"))
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            self._warn(f"{path} cannot be removed: {error}")

    def _warn(self, text: str) -> None:
        # once: a disk that is full would say it a thousand times
        if not self._warned:
            self._warned = True
            log.warning("cache: %s", text)
