"""A folder as a store: for laptops, and for volumes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.errors import ConfigurationError
from finetune_trainer.publish.store import StoredObject, Unfinished

TEMPORARY = ".finetune-part-"


class FileStore:
    """Objects are files below `root`. Files appear whole: they are written beside and then moved."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def uri_of(self, key: str) -> str:
        return f"file://{self.root / key}"

    def put_file(self, key: str, path: Path) -> None:
        with self._beside(key) as part:
            shutil.copyfile(path, part)
            part.replace(self.root / key)

    def put_bytes(self, key: str, data: bytes, if_none_match: bool = False) -> bool:
        with self._beside(key) as part:
            part.write_bytes(data)
            if not if_none_match:
                part.replace(self.root / key)
                return True
            try:
                # unlike a rename, a link never replaces what is there
                os.link(part, self.root / key)
            except FileExistsError:
                return False
            return True

    def get_bytes(self, key: str) -> bytes | None:
        path = self.root / key
        return path.read_bytes() if path.is_file() else None

    def get_file(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / key, path)

    def list(self, prefix: str) -> list[StoredObject]:
        # only the folder that the prefix lies in needs a look
        start = self.root / prefix.rpartition("/")[0]
        found = (path for path in start.rglob("*") if path.is_file() and not path.name.startswith(TEMPORARY))
        objects = (_stored(path.relative_to(self.root).as_posix(), path) for path in found)
        return sorted((o for o in objects if o is not None and o.key.startswith(prefix)), key=lambda o: o.key)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            path = self.root / key
            path.unlink(missing_ok=True)
            self._remove_empty_folders(path.parent)

    def unfinished(self, prefix: str) -> list[Unfinished]:
        start = self.root / prefix.rpartition("/")[0]
        parts = (path.relative_to(self.root) for path in start.rglob(f"{TEMPORARY}*"))
        # .finetune-part-NAME-RANDOM in the folder of NAME
        names = ((part, part.name.removeprefix(TEMPORARY).rpartition("-")[0]) for part in parts)
        found = (Unfinished(part.with_name(name).as_posix(), part.as_posix()) for part, name in names if name)
        return sorted((one for one in found if one.key.startswith(prefix)), key=lambda one: one.key)

    def abort(self, uploads: Sequence[Unfinished]) -> None:
        self.delete([upload.handle for upload in uploads])

    def _remove_empty_folders(self, folder: Path) -> None:
        """A folder is no object: it goes with its last file."""
        while folder != self.root and folder.is_relative_to(self.root) and folder.is_dir():
            try:
                folder.rmdir()
            except OSError:
                return  # it holds something, perhaps since this moment
            folder = folder.parent

    @contextmanager
    def _beside(self, key: str) -> Iterator[Path]:
        """A temporary file in the folder of `key`, removed in the end if it is still there."""
        folder = (self.root / key).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{Path(key).name}-", dir=folder)
        except OSError as error:
            raise ConfigurationError(
                f"spec.output.uri is file://{self.root}, but {folder} cannot be written ({error.strerror}); "
                "choose a folder that you may write"
            ) from error
        os.close(handle)
        part = Path(name)
        part.chmod(0o644)
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)


def _stored(key: str, path: Path) -> StoredObject | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None  # removed since the listing, by another pod
    return StoredObject(key, stat.st_size, stat.st_mtime)
