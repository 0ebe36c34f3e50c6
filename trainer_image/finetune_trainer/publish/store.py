"""A place that keeps objects under keys: an S3 prefix or a folder. Keys are relative to that place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from finetune_api.storage import Storage

from finetune_trainer.credentials import Credentials
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.paths import local_path


@dataclass(frozen=True)
class StoredObject:
    """What a listing tells."""

    key: str
    """Relative to the store, with slashes."""
    size: int
    """Bytes."""
    modified: float = field(default=0.0, compare=False)
    """When it was stored, in seconds since 1970 by the store's clock. Compare it with other objects of this store
    only: the clocks of pods differ."""


@dataclass(frozen=True)
class Unfinished:
    """What an upload left that never came to its end: it is no object, but it takes up space."""

    key: str
    """What it was to become."""
    handle: str
    """By which the store knows it."""


class Store(Protocol):
    """Objects under keys. Every method raises ConfigurationError (credentials, bucket) or RunError (may pass).

    Methods may be called from several threads.
    """

    def uri_of(self, key: str) -> str:
        """Where `key` is, for people and manifests."""

    def put_file(self, key: str, path: Path) -> None:
        """Stores a file; readers see the old object or the whole new one."""

    def put_bytes(self, key: str, data: bytes, if_none_match: bool = False) -> bool:
        """Stores `data`. With `if_none_match`, False when the key exists already, and nothing is changed."""

    def get_bytes(self, key: str) -> bytes | None:
        """The object, or None when there is none."""

    def get_file(self, key: str, path: Path) -> None:
        """Writes the object to `path`, whose folder is made. Raises FileNotFoundError."""

    def list(self, prefix: str) -> list[StoredObject]:
        """All objects whose key begins with `prefix`, sorted by key."""

    def delete(self, keys: Sequence[str]) -> None:
        """Removes objects; missing ones are passed over."""

    def unfinished(self, prefix: str) -> list[Unfinished]:
        """Uploads that have begun and not ended, to keys that begin with `prefix`. Some may be going on right now."""

    def abort(self, uploads: Sequence[Unfinished]) -> None:
        """Removes what they left; one that ends in the meantime is passed over. A writer that lives gets an error."""


def open_store(uri: str, credentials: Credentials, storage: Storage | None = None) -> Store:
    """The store behind an s3://, file:// or pvc:// URI. Touches nothing yet, but reads the credentials' files.

    Raises:
        ConfigurationError: the Secret lacks a key, or the scheme is unknown.
    """
    if uri.startswith("s3://"):
        # boto3 takes a third of a second to import, and a laptop run to a folder never needs it
        from finetune_trainer.publish.s3_store import S3Store
        from finetune_trainer.s3 import S3Location

        return S3Store(S3Location.parse(uri, credentials, storage))
    path = local_path(uri, credentials.role)
    if path is not None:
        from finetune_trainer.publish.file_store import FileStore

        return FileStore(path)
    raise ConfigurationError(f"{credentials.role.field}.uri is {uri}: results can be written to s3:// or file://")
