"""Where inputs come from: one file for each scheme of a URI."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from finetune_api.base_model import BaseModelSpec
from finetune_api.dataset import DatasetSpec
from finetune_api.outputs import JudgementSpec

from finetune_trainer.credentials import Credentials, Role
from finetune_trainer.errors import DataError
from finetune_trainer.sources.builtin import open_builtin
from finetune_trainer.sources.kinds import ENCODER, PIPELINE, ModelKind
from finetune_trainer.sources.local import folder_digest, open_folder

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTION_SUFFIXES = {"Sidecar": (".txt",), "Folder": (".txt",), "Jsonl": (".jsonl",)}

OnProgress = Callable[[int, int], None]
"""Hears (done, total) files; what it raises ends the fetching."""


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine."""

    path: Path
    revision: str
    """Commit of an hf:// model, else a digest of the files."""


def fetch_model(
    spec: BaseModelSpec, credentials: Credentials, cache: Path, on_progress: OnProgress, kind: ModelKind = PIPELINE
) -> LocalModel:
    """A model of this kind, downloaded if need be.

    Raises:
        ConfigurationError, DataError, RunError: as the message says.
    """
    scheme = spec.uri.partition("://")[0]
    if scheme == "builtin":
        path = open_builtin(spec.uri)
        return LocalModel(path, folder_digest(path))
    if scheme == "hf":
        # the Hub's library is only needed here, and takes a while to import
        from finetune_trainer.sources.hf import fetch_from_hub

        return LocalModel(*fetch_from_hub(kind, spec, credentials, cache / "models" / "hf", on_progress))
    if scheme == "s3":
        model = _fetch_s3_model(spec, credentials, cache, on_progress)
    else:
        path = open_folder(spec.uri, Role.BASE_MODEL)
        model = LocalModel(path, folder_digest(path))
    if not (model.path / kind.index).is_file():
        raise DataError(
            f"{kind.uri_field} is {spec.uri}, where there is no {kind.index}; name the folder of {kind.layout}"
        )
    return model


def fetch_pictures(spec: DatasetSpec, credentials: Credentials, cache: Path, on_progress: OnProgress) -> Path:
    """A folder with the pictures, and the captions where they are files, downloaded if need be.

    Raises:
        ConfigurationError, DataError, RunError: as the message says.
    """
    if not spec.uri.startswith("s3://"):
        return open_folder(spec.uri, Role.DATASET)
    from finetune_trainer.s3 import S3Location
    from finetune_trainer.sources.s3 import download, list_files, listing_digest

    location = S3Location.parse(spec.uri, credentials, spec.storage)
    found = list_files(location)
    captions = CAPTION_SUFFIXES.get(spec.captions.source, ()) if spec.captions is not None else ()
    wanted = [f for f in found if PurePosixPath(f.name).suffix.lower() in (*PICTURE_SUFFIXES, *captions)]
    if not any(PurePosixPath(f.name).suffix.lower() in PICTURE_SUFFIXES for f in wanted):
        others = f"only {len(found)} other objects" if found else "nothing"
        raise DataError(
            f"spec.dataset.uri is {spec.uri}, where there are no pictures but {others}; upload PNG, JPEG or WebP files "
            "there, or correct the prefix"
        )
    return download(location, wanted, cache / "pictures" / _folder(listing_digest(wanted)), on_progress)


def fetch_encoder(
    judgement: JudgementSpec, base: BaseModelSpec, credentials: Credentials, cache: Path, on_progress: OnProgress
) -> LocalModel | None:
    """The encoder that judges, with the base model's credentials and storage; None where none is named.

    Raises:
        ConfigurationError, DataError, RunError: as the message says.
    """
    if judgement.encoder_uri is None:
        return None
    spec = base.model_copy(update={"uri": judgement.encoder_uri, "revision": judgement.encoder_revision})
    return fetch_model(spec, credentials, cache, on_progress, ENCODER)


def _fetch_s3_model(spec: BaseModelSpec, credentials: Credentials, cache: Path, on_progress: OnProgress) -> LocalModel:
    from finetune_trainer.s3 import S3Location
    from finetune_trainer.sources.s3 import download, list_files, listing_digest

    location = S3Location.parse(spec.uri, credentials, spec.storage)
    # no pickles, here as little as from the Hub
    files = [f for f in list_files(location) if PurePosixPath(f.name).suffix in (".safetensors", ".json", ".txt")]
    revision = listing_digest(files)
    return LocalModel(download(location, files, cache / "models" / "s3" / _folder(revision), on_progress), revision)


def _folder(digest: str) -> str:
    return hashlib.sha256(digest.encode()).hexdigest()[:32]
