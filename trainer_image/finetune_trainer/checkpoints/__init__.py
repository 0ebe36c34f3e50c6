"""Checkpoints on this machine and, where there is a store, beside the output, so that another pod can go on."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from finetune_trainer.checkpoints.files import (
    MANIFEST,
    BadCheckpoint,
    Best,
    TrainingState,
    read_checkpoint,
    read_manifest,
    write_checkpoint,
)
from finetune_trainer.checkpoints.time_left import Rate, is_time_for
from finetune_trainer.errors import RunError
from finetune_trainer.publish.store import Store

__all__ = ["BadCheckpoint", "Best", "Checkpoints", "NoTime", "TrainingState"]


class NoTime(RunError):
    """The process must end before a checkpoint could be stored."""


class Checkpoints:
    """The checkpoints of one run, over all its attempts."""

    def __init__(
        self,
        local_dir: Path,
        store: Store | None,
        prefix: str,
        run_digest: str,
        attempt: str,
        keep: int,
        seconds_left: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """
        Args:
            local_dir: folder for checkpoints alone.
            store: where they outlive the pod; None keeps them on this machine only.
            prefix: beginning of their keys in the store, with a slash at its end.
            run_digest: SHA-256 of the TrainingRun; checkpoints of another one are passed over.
            attempt: name of this attempt; two pods that overlap for a moment never write the same key.
            keep: how many are kept, here and there.
            seconds_left: until this process must have ended.
        """
        self._dir, self._store, self._prefix = local_dir, store, prefix
        self._run, self._attempt, self._keep = run_digest, attempt, keep
        self._seconds_left = seconds_left
        self._rate: Rate | None = None
        self._damaged: set[str] = set()

    def save(self, step: int, state: TrainingState) -> None:
        """Writes, then uploads, then removes the oldest.

        Raises:
            NoTime: it would not be stored before this process must have ended; nothing was written.
            RunError: the store failed; the checkpoint on this machine is complete.
            OSError, SafetensorError: this machine's disk failed. Checkpoints before this one are as they were.
        """
        size, left = state.size, self._seconds_left()
        if self._store is not None and not is_time_for(size, self._rate, left):
            raise NoTime(
                f"{size / 1e6:.0f} MB take too long for the {left:.0f} s that are left of the grace: the last "
                f"checkpoint took {self._rate.seconds if self._rate else 0:.0f} s"
            )
        began = time.monotonic()
        name = f"{step:08d}"
        folder, half_written = self._dir / name, self._dir / f"{name}.tmp"
        for leftover in (half_written, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            write_checkpoint(half_written, state, self._run, self._attempt)
            half_written.rename(folder)
        finally:
            # where the disk is full, half a checkpoint would keep it so
            shutil.rmtree(half_written, ignore_errors=True)
        whole = [path for path in self._local() if self._is_ours(_bytes(path / MANIFEST))]
        for old in self._local():
            # what is damaged or of another run can never be used, and must not push out what can
            if old not in whole[: self._keep]:
                shutil.rmtree(old)
        if self._store is not None:
            self._upload(self._store, folder, f"{self._prefix}{name}-{self._attempt}/")
            self._rate = Rate(size, time.monotonic() - began)
            self._rotate(self._store)

    def latest(self) -> tuple[int, TrainingState] | None:
        """The newest one that is whole and of this run, or None."""
        remote = self._remote(self._store) if self._store is not None else {}
        candidates = [(folder.name, "") for folder in self._local()]
        candidates += [(folder[len(self._prefix) :].partition("-")[0], folder) for folder in remote]
        # of the same step, the one on this machine first: nothing to fetch
        for name, folder in sorted(candidates, key=lambda one: (-int(one[0]), one[1] != "")):
            try:
                if folder and self._store is not None:
                    self._download(self._store, folder, name)
                state = read_checkpoint(self._dir / name, self._run)
            except (BadCheckpoint, FileNotFoundError):
                self._damaged.add(folder)
                if self._is_ours(_bytes(self._dir / name / MANIFEST)):
                    shutil.rmtree(self._dir / name)  # it looks whole, and must not push out what is
                continue
            return state.step, state
        return None

    def clear(self) -> None:
        """Removes all of them, here and in the store: when the weights are published, or the data changed."""
        shutil.rmtree(self._dir, ignore_errors=True)
        if self._store is not None:
            self._store.delete([stored.key for stored in self._store.list(self._prefix)])

    def _is_ours(self, manifest: bytes | None) -> bool:
        try:
            return manifest is not None and bool(read_manifest(manifest, self._run))
        except BadCheckpoint:
            return False

    def _local(self) -> list[Path]:
        """Folders of checkpoints on this machine, newest first."""
        if not self._dir.is_dir():
            return []
        return sorted((one for one in self._dir.iterdir() if one.name.isdigit()), reverse=True)

    def _remote(self, store: Store) -> dict[str, list[str]]:
        """Complete or not: prefix of each checkpoint in the store → its keys, newest first."""
        folders: dict[str, list[str]] = {}
        for stored in store.list(self._prefix):
            folder, slash, _ = stored.key[len(self._prefix) :].partition("/")
            if slash and folder.partition("-")[0].isdigit():
                folders.setdefault(f"{self._prefix}{folder}/", []).append(stored.key)
        return dict(sorted(folders.items(), reverse=True))

    def _upload(self, store: Store, folder: Path, prefix: str) -> None:
        files = sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST)  # the manifest is last
        for path in files:
            store.put_file(prefix + path.name, path)

    def _rotate(self, store: Store) -> None:
        """Removes the oldest, and what is damaged."""
        remote = self._remote(store)
        whole = [name for name in remote if self._is_ours(store.get_bytes(name + MANIFEST))]
        usable = [name for name in whole if name not in self._damaged]
        for old in (name for name in whole if name not in usable[: self._keep]):
            # manifest first: a checkpoint that is half removed must not look whole
            store.delete([old + MANIFEST])
            store.delete([key for key in remote[old] if key != old + MANIFEST])

    def _download(self, store: Store, prefix: str, name: str) -> None:
        data = store.get_bytes(prefix + MANIFEST)
        if data is None:
            raise BadCheckpoint("no manifest")
        manifest = read_manifest(data, self._run)
        folder, half_written = self._dir / name, self._dir / f"{name}.tmp"
        for leftover in (half_written, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        for file in manifest["files"]:
            store.get_file(prefix + file, half_written / file)
        (half_written / MANIFEST).write_bytes(data)
        half_written.rename(folder)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
