"""file:// and pvc://: folders of this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from finetune_trainer.credentials import Role
from finetune_trainer.digests import sha256_of
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.paths import local_path


def open_folder(uri: str, role: Role) -> Path:
    """The folder behind a file:// or pvc:// URI.

    Raises:
        ConfigurationError: there is no such folder.
    """
    path = local_path(uri, role)
    assert path is not None, "only called for file:// and pvc://"
    if not path.is_dir():
        what = "a file, not a folder" if path.exists() else "not there"
        remedy = "correct the path within the claim" if uri.startswith("pvc://") else "correct the path"
        raise ConfigurationError(f"{role.field}.uri is {uri}, but {path} is {what}; {remedy}")
    return path


def folder_digest(folder: Path) -> str:
    """ "sha256:…" over names and contents of all files in `folder`, hidden ones left out."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts):
            whole.update(f"{sha256_of(path)}  {name}\n".encode())
    return f"sha256:{whole.hexdigest()}"
