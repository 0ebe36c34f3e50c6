"""s3://: a prefix, downloaded in parallel into a folder named by what is in it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.errors import ConfigurationError
from finetune_trainer.patience import Life, patiently
from finetune_trainer.s3 import S3Location

DOWNLOADS = 8


@dataclass(frozen=True)
class RemoteFile:
    """One object of a listing."""

    name: str
    """Relative to the prefix."""
    size: int
    etag: str


def list_files(location: S3Location) -> list[RemoteFile]:
    """Every object below the prefix, by name; the zero-byte "folders" that consoles make are left out.

    Raises:
        ConfigurationError: no bucket, no access, or a key that would leave the folder it is downloaded to.
    """
    client = location.client()

    def items(life: Life) -> list[dict[str, Any]]:
        with location.errors_explained():
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=location.bucket, Prefix=location.prefix)
            return [item for page in pages for item in page.get("Contents", [])]

    files = []
    for item in patiently(items):
        name = item["Key"].removeprefix(location.prefix)
        if not name or name.endswith("/"):
            continue
        if ".." in name.split("/") or name.startswith("/"):
            raise ConfigurationError(
                f"{location.field}.uri is {location.uri}, where an object is called {name!r}: such a name cannot be "
                "downloaded safely; rename it"
            )
        files.append(RemoteFile(name, item["Size"], item["ETag"].strip('"')))
    return sorted(files, key=lambda file: file.name)


def find_file(location: S3Location, name: str) -> RemoteFile | None:
    """The object `name` below the prefix, None where there is none. Its neighbours are not listed, however many.

    Raises:
        ConfigurationError: no bucket or no access.
    """
    client, key = location.client(), location.prefix + name

    def items(life: Life) -> list[dict[str, Any]]:
        with location.errors_explained():
            # of all keys that begin so, the key itself comes first
            page = client.list_objects_v2(Bucket=location.bucket, Prefix=key, MaxKeys=1)
            return list(page.get("Contents", []))

    found = [item for item in patiently(items) if item["Key"] == key]
    return RemoteFile(name, found[0]["Size"], found[0]["ETag"].strip('"')) if found else None


def listing_digest(files: Sequence[RemoteFile]) -> str:
    """ "s3-etags:…", a digest of names, sizes and ETags: the same listing is the same content."""
    text = "".join(f"{file.etag} {file.size} {file.name}\n" for file in files)
    return f"s3-etags:{hashlib.sha256(text.encode()).hexdigest()}"


def download(
    location: S3Location, files: Sequence[RemoteFile], folder: Path, on_progress: Callable[[int, int], None]
) -> Path:
    """Makes `folder` with all `files` in it, or leaves nothing: it appears when the last file has arrived.

    A folder that is there already is complete, and is taken as it is. `on_progress(done, total)` counts files; what
    it raises ends the download.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    client = location.client()

    def fetch(file: RemoteFile) -> None:
        path = part / file.name
        path.parent.mkdir(parents=True, exist_ok=True)

        def download(life: Life) -> None:
            with location.errors_explained():
                client.download_file(location.bucket, location.prefix + file.name, str(path), Callback=life.moved)

        patiently(download)

    pool = ThreadPoolExecutor(DOWNLOADS)
    try:
        for done, _ in enumerate(pool.map(fetch, files), start=1):
            on_progress(done, len(files))
        part.chmod(0o755)
        try:
            part.rename(folder)
        except OSError:
            # another pod that shares the cache was faster: the name carries the digest, so it has the same files
            if not folder.is_dir():
                raise
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(part, ignore_errors=True)
    return folder
