"""Loadable weights that are published while the training goes on: exports/<run>/<step>-<attempt>/ with export.json
last. They belong to the run and not to an attempt, for the attempt that ends it may have begun after them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from finetune_api.progress import Sha256
from pydantic import ValidationError

from finetune_trainer.publish.manifest import ManifestExport, ManifestFile, ManifestModel
from finetune_trainer.publish.store import Store
from finetune_trainer.publish.uploading import upload

RECORD = "export.json"


class ExportRecord(ManifestModel):
    """export.json: where it stands, every file it names is there."""

    format: Literal["finetune.dev/export/v1"] = "finetune.dev/export/v1"
    run_uid: str
    """UID of the FineTuneJob."""
    run_sha256: Sha256
    """Digest of the TrainingRun: another digest means other settings."""
    attempt: str
    """The attempt that made it."""
    step: int
    """Optimizer steps done."""
    weights: tuple[str, ...]
    """What to load, relative to output.uri."""
    files: tuple[ManifestFile, ...]
    """All files but this one."""


def exports_prefix(run_uid: str) -> str:
    """Where the weights of all attempts at a run are, each in <step>-<attempt>/."""
    return f"exports/{run_uid}/"


class Exports:
    """Those of one run, for one attempt at it."""

    def __init__(self, store: Store, run_uid: str, run_sha256: str, attempt: str) -> None:
        self._store, self._run_uid, self._run_sha256, self._attempt = store, run_uid, run_sha256, attempt
        self._prefix = exports_prefix(run_uid)

    def publish(self, step: int, folder: Path, weights: Sequence[str]) -> None:
        """Uploads all of `folder`; `weights` are what to load, relative to it. Raises RunError when the store
        fails."""
        prefix = f"{self._prefix}{step:08d}-{self._attempt}/"
        files = upload(self._store, prefix, folder)
        record = ExportRecord(
            run_uid=self._run_uid,
            run_sha256=self._run_sha256,
            attempt=self._attempt,
            step=step,
            weights=tuple(prefix + name for name in weights),
            files=files,
        )
        data = record.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"
        self._store.put_bytes(prefix + RECORD, data.encode())

    def found(self, last_step: int) -> tuple[tuple[ManifestExport, ...], tuple[ManifestFile, ...]]:
        """For the manifest: one for each step up to `last_step`, this attempt's own where there are several, else
        the newest; and all their files. Raises RunError when the store fails."""
        chosen: dict[int, tuple[tuple[bool, float], ExportRecord, ManifestFile]] = {}
        for stored in self._store.list(self._prefix):
            if not stored.key.endswith(f"/{RECORD}"):
                continue
            data = self._store.get_bytes(stored.key) or b""
            try:
                record = ExportRecord.model_validate_json(data)
            except ValidationError:
                continue
            if (record.run_uid, record.run_sha256) != (self._run_uid, self._run_sha256) or record.step > last_step:
                continue
            rank = (record.attempt == self._attempt, stored.modified)
            if record.step not in chosen or rank > chosen[record.step][0]:
                itself = ManifestFile(path=stored.key, size=len(data), sha256=hashlib.sha256(data).hexdigest())
                chosen[record.step] = (rank, record, itself)
        records = [(record, itself) for _, (_, record, itself) in sorted(chosen.items())]
        return (
            tuple(ManifestExport(step=record.step, weights=record.weights) for record, _ in records),
            tuple(file for record, itself in records for file in (*record.files, itself)),
        )
