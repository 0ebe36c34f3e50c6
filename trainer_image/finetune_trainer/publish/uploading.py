"""A folder into a store, file by file; whoever names the files afterwards can rely on their being there."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetune_trainer.digests import sha256_of
from finetune_trainer.errors import RunError
from finetune_trainer.publish.manifest import ManifestFile
from finetune_trainer.publish.store import Store

UPLOADS = 4


def upload(
    store: Store, prefix: str, folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[ManifestFile, ...]:
    """Uploads everything in `folder` below `prefix`, and compares the sizes in the store's listing.

    Args:
        on_progress: hears (done, total) files.

    Raises:
        RunError: a file did not arrive whole, or the store failed.
    """

    def upload_one(path: Path) -> ManifestFile:
        key = prefix + path.relative_to(folder).as_posix()
        file = ManifestFile(path=key, size=path.stat().st_size, sha256=sha256_of(path))
        store.put_file(key, path)
        return file

    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files: list[ManifestFile] = []
    with ThreadPoolExecutor(UPLOADS) as pool:
        for file in pool.map(upload_one, paths):
            files.append(file)
            on_progress(len(files), len(paths))
    stored = {found.key: found.size for found in store.list(prefix)}
    for file in files:
        if stored.get(file.path) != file.size:
            raise RunError(
                f"{store.uri_of(file.path)} has {stored.get(file.path, 'no')} bytes after the upload instead of "
                f"{file.size}; nothing was published"
            )
    return tuple(files)
