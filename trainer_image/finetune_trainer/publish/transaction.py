"""Results become visible all at once: files under the attempt's own prefix first, manifest.json last, claimed.

A pod that dies in between leaves files that nothing names. Two pods of the same run that both come to the end write
to different prefixes, and the store lets only one of them create manifest.json.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.publish.attempts import FOLDER, AttemptRecord, Found, attempt_of, record_key
from finetune_trainer.publish.leftovers import Claim, Fate, checkpoints_prefix, fate_of, leftovers, owner_of
from finetune_trainer.publish.manifest import MANIFEST, Manifest, ManifestFile
from finetune_trainer.publish.on_the_way import exports_prefix
from finetune_trainer.publish.store import Store, Unfinished
from finetune_trainer.publish.uploading import upload

log = logging.getLogger("finetune")

RUN = "run.json"
"""The TrainingRun beside the results."""


@dataclass(frozen=True)
class Published:
    """A manifest as it stands in the store."""

    manifest: Manifest
    sha256: str


class Transaction:
    """One attempt of one run at one output."""

    def __init__(self, store: Store, run_uid: str, run_sha256: str, attempt: str) -> None:
        self._store = store
        self._run_uid = run_uid
        self._run_sha256 = run_sha256
        self._attempt = attempt

    @property
    def prefix(self) -> str:
        return f"attempts/{self._attempt}/"

    @property
    def _prefixes(self) -> tuple[str, ...]:
        return (FOLDER, checkpoints_prefix(self._run_uid), exports_prefix(self._run_uid))

    def published(self) -> Published | None:
        """The manifest of this run, when an earlier attempt came to the end.

        Raises:
            ConfigurationError: the place holds the results of another run, or of other settings.
        """
        data = self._store.get_bytes(MANIFEST)
        if data is None:
            return None
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            raise ConfigurationError(
                f"spec.output.uri holds a {self._store.uri_of(MANIFEST)} that is not one of ours; choose another place"
            ) from error
        if manifest.run.uid != self._run_uid:
            whose = f"{manifest.run.namespace}/{manifest.run.name}"
            raise ConfigurationError(
                f"spec.output.uri is in use by {whose}: {self._store.uri_of(MANIFEST)} names the results of its run "
                f"{manifest.run.uid}; choose another prefix, or remove that manifest"
            )
        if manifest.run_sha256 != self._run_sha256:
            raise ConfigurationError(
                f"spec.output.uri holds results that {manifest.run.name} made with other settings "
                f"({self._store.uri_of(MANIFEST)}); choose another place, or replace them with --overwrite"
            )
        return Published(manifest, hashlib.sha256(data).hexdigest())

    def check_writable(self) -> None:
        """Writes and removes a small object, so that a bad secret shows now and not after the training.

        Raises:
            ConfigurationError: names the field and the remedy.
        """
        key = f"{self.prefix}.probe"
        self._store.put_bytes(key, b"finetune\n")
        self._store.delete([key])

    def upload(self, folder: Path, on_progress: Callable[[int, int], None]) -> tuple[ManifestFile, ...]:
        """Uploads everything in `folder` and compares the sizes in the store's listing.

        `on_progress(done, total)` counts files. Raises RunError when a file did not arrive whole.
        """
        return upload(self._store, self.prefix, folder, on_progress)

    def commit(self, manifest: Manifest) -> Published:
        """Creates manifest.json. When another attempt of this run was faster, its manifest is the result.

        Raises:
            ConfigurationError: another run published here in the meantime.
        """
        data = manifest.to_bytes()
        if self._store.put_bytes(MANIFEST, data, if_none_match=True):
            return Published(manifest, hashlib.sha256(data).hexdigest())
        published = self.published()
        if published is None:
            raise RunError(f"{self._store.uri_of(MANIFEST)} was there and is gone again; trying anew may help")
        return published

    def tidy(self, published: Published | None) -> None:
        """Removes what other attempts of this run left, as far as the rule in leftovers.py allows; with `published`
        everything that it does not name. Failing to costs space, never the run: it is logged, and the next attempt
        tries again.
        """
        try:
            self._tidy(published.manifest if published is not None else None)
        except RunError as error:
            log.warning("what earlier attempts left was not all removed: %s", error)

    def clear(self) -> None:
        """Removes what is published here, the manifest first, so that it never names what is gone; and the
        checkpoints and the weights on the way of this run."""
        self._store.delete([MANIFEST])
        for prefix in self._prefixes:
            self._store.delete([found.key for found in self._store.list(prefix)])

    def _tidy(self, manifest: Manifest | None) -> None:
        objects = [found for prefix in self._prefixes for found in self._store.list(prefix)]
        uploads = [found for prefix in self._prefixes for found in self._unfinished(prefix)]
        owners = {owner_of(found.key, self._run_uid) for found in (*objects, *uploads)}
        modified = {attempt_of(found.key): found.modified for found in objects if attempt_of(found.key)}
        now = max(modified.values(), default=0.0)
        fates: dict[str, Fate] = {}
        for attempt in owners & modified.keys():
            record = self._record(str(attempt))
            if attempt != self._attempt and record is not None and record.run_uid == self._run_uid:
                fates[record.attempt] = fate_of(Found(record, modified[attempt]), now)
        claim = None
        if manifest is not None:
            listed = {self._attempt, *(attempt.id for attempt in manifest.attempts)}
            claim = Claim(manifest.attempt, listed, {file.path for file in manifest.files})
            if manifest.attempt != self._attempt:
                fates[self._attempt] = Fate.ENDED  # another one was faster: nothing names what this one uploaded
        found = leftovers(objects, uploads, fates, self._run_uid, claim)
        self._store.abort(found.uploads)
        self._store.delete(found.keys)
        if found.keys or found.uploads:
            log.info(
                "removed what earlier attempts left: %d objects, %d unfinished uploads",
                len(found.keys),
                len(found.uploads),
            )

    def _unfinished(self, prefix: str) -> list[Unfinished]:
        try:
            return self._store.unfinished(prefix)
        except RunError as error:
            # listing uploads is a right of its own, which not everyone who may write has
            log.warning("unfinished uploads were not looked for: %s", error)
            return []

    def _record(self, attempt: str) -> AttemptRecord | None:
        try:
            return AttemptRecord.model_validate_json(self._store.get_bytes(record_key(attempt)) or b"")
        except ValidationError:
            return None
