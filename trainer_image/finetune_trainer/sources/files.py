"""Single files that a technique starts from: a LoRA to go on with, an embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.methods import MethodSpec, TokenSpec
from finetune_api.storage import Storage

from finetune_trainer.credentials import Credentials, Role
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.paths import local_path


@dataclass(frozen=True)
class StartingFiles:
    """Files on this machine, by their URI."""

    paths: Mapping[str, Path]

    def path(self, uri: str) -> Path:
        """Where the file of `uri` lies."""
        return self.paths[uri]


def starting_uris(method: MethodSpec) -> dict[str, str]:
    """URI → the field that names it."""
    found: dict[str, str] = {}
    if method.lora is not None:
        if method.lora.continue_from is not None:
            found[method.lora.continue_from] = "spec.method.lora.continueFrom"
        found |= _of_tokens("lora", method.lora.tokens or ())
    if method.textual_inversion is not None:
        found |= _of_tokens("textualInversion", method.textual_inversion.tokens)
    return found


def fetch_files(method: MethodSpec, credentials: Credentials, storage: Storage | None, cache: Path) -> StartingFiles:
    """All files that `method` starts from, with the credentials and the storage of output.

    Raises:
        ConfigurationError, RunError: a file is not there or may not be read.
    """
    return StartingFiles(
        {uri: _fetch(uri, field, credentials, storage, cache) for uri, field in starting_uris(method).items()}
    )


def _of_tokens(technique: str, tokens: Sequence[TokenSpec]) -> dict[str, str]:
    return {
        token.initial_embedding_uri: f"spec.method.{technique}.tokens[{number}].initialEmbeddingUri"
        for number, token in enumerate(tokens)
        if token.initial_embedding_uri is not None
    }


def _fetch(uri: str, field: str, credentials: Credentials, storage: Storage | None, cache: Path) -> Path:
    if not uri.startswith("s3://"):
        path = local_path(uri, Role.OUTPUT)
        if path is None or not path.is_file():
            raise ConfigurationError(f"{field} is {uri}, but there is no such file; correct the path")
        return path
    from finetune_trainer.s3 import S3Location
    from finetune_trainer.sources.s3 import download, find_file, listing_digest

    folder, _, name = uri.rpartition("/")
    location = S3Location.parse(folder, credentials, storage)
    found = find_file(location, name)
    if found is None:
        raise ConfigurationError(
            f"{field} is {uri}, but there is no such object, or {location.field}.secretRef may not read it; correct "
            "the key"
        )
    digest = hashlib.sha256(listing_digest([found]).encode()).hexdigest()[:32]
    return download(location, [found], cache / "files" / digest, lambda done, total: None) / name
