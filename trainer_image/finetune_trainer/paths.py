"""file:// and pvc:// URIs as paths of this machine."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from finetune_trainer.credentials import Role
from finetune_trainer.errors import ConfigurationError

MOUNTS = Path("/mnt/finetune")


def local_path(uri: str, role: Role) -> Path | None:
    """Path behind a file:// or pvc:// URI, or None for another scheme.

    file:///absolute and file://~/home are what they say; file://./relative and file://relative are relative to the
    current directory, as a path on a command line is. pvc://claim/path is below the volume that the operator mounts
    for the role.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "file":
        return Path(unquote(rest)).expanduser().absolute()
    if scheme == "pvc":
        return MOUNTS / role.value / rest.partition("/")[2]
    return None


def shown(uri: str) -> str:
    """A path that can be clicked or pasted, relative to the current folder where it lies below it."""
    if not uri.startswith("file://"):
        return uri
    path = Path(uri.removeprefix("file://"))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def make_out(given: object, path: Path) -> None:
    """Makes the folder `path` of --out, which the user called `given`. Raises ConfigurationError when it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"--out is {given}, but {path} cannot be made ({error.strerror}); choose a folder that you may write"
        ) from error
