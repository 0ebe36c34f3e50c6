"""What RESULT names: a run's results or a base model; and everything about it brought to this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from finetune_api.base_model import BaseModelSpec
from finetune_api.storage import SecretRef, Storage
from pydantic import ValidationError

from finetune_trainer.credentials import Credentials, Role, load_credentials
from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.generation.results import RunResults, fetch_weights, read_results
from finetune_trainer.publish.store import Store, open_store
from finetune_trainer.settings import Settings
from finetune_trainer.sources import LocalModel, fetch_model

MODEL_SCHEMES = ("builtin://", "hf://")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Where AWS' own tools look for another server, in this order."""


@dataclass(frozen=True)
class Fetched:
    """All that is needed to draw, on this machine."""

    name: str
    """For people and for the pictures' text."""
    uri: str
    base_uri: str
    base: LocalModel | None
    """None where the results are a whole pipeline, which needs no other model."""
    base_revision: str
    results: RunResults | None = None
    """None for a base model."""
    weights: Mapping[str, Path] = field(default_factory=dict)
    """Path within the output → path on this machine."""


def as_uri(place: str) -> str:
    """A folder on a command line as a file:// URI; URIs stay as they are."""
    return place if "://" in place else f"file://{quote(str(Path(place).expanduser().absolute()))}"


def open_place(uri: str, settings: Settings) -> Store:
    """The store behind `uri`, with the credentials of the environment, or those in FINETUNE_CREDENTIALS_DIR/output.

    Raises:
        ConfigurationError: the scheme is unknown, or credentials are missing.
    """
    return open_store(uri, _credentials(Role.OUTPUT, settings), storage_of_environment())


def storage_of_environment() -> Storage | None:
    """The S3 server that AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL names. None without: AWS itself."""
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None:
        return None
    try:
        return Storage(endpoint=endpoint)
    except ValidationError as error:
        raise ConfigurationError(f"{ENDPOINTS[0]} is {endpoint}: it must begin with http:// or https://") from error


def fetch_source(
    result: str, base_model: str | None, settings: Settings, on_progress: Callable[[int, int], None]
) -> Fetched:
    """Everything behind RESULT.

    Args:
        result: output.uri of a run, as a URI or a folder; or a base model.
        base_model: where the base model of the run is to be read from, instead of where the run had it.
        on_progress: hears (done, total) files; what it raises ends the fetching.

    Raises:
        ConfigurationError, DataError, RunError: as the message says.
    """
    uri = as_uri(result)
    if uri.startswith(MODEL_SCHEMES):
        return _base_model(uri, base_model, settings, on_progress)
    store = open_place(uri, settings)
    results = read_results(uri, store)
    if results is None:
        if store.get_bytes("model_index.json") is not None:
            return _base_model(uri, base_model, settings, on_progress)
        raise ConfigurationError(
            f"RESULT is {result}, but there is no manifest.json; name the output.uri of a run that has succeeded (it "
            "prints it at its end), or a base model such as builtin://tiny-shapes"
        )
    base = None
    if not results.drawable().pipeline:
        base = fetch_model(
            _base_spec(results, base_model), _credentials(Role.BASE_MODEL, settings), settings.cache(), on_progress
        )
        _same_base(results, base, base_model)
    weights = fetch_weights(results, store, settings.cache(), on_progress)
    manifest = results.manifest
    return Fetched(
        name=manifest.run.name,
        uri=uri,
        base_uri=manifest.base_model.uri,
        base=base,
        base_revision=manifest.base_model.revision,
        results=results,
        weights=weights,
    )


def _base_model(
    uri: str, base_model: str | None, settings: Settings, on_progress: Callable[[int, int], None]
) -> Fetched:
    if base_model is not None:
        raise ConfigurationError(f"RESULT is {uri}, a base model: remove --base-model")
    spec = _spec({"uri": uri, "storage": _wire(storage_of_environment())}, "RESULT")
    model = fetch_model(spec, _credentials(Role.BASE_MODEL, settings), settings.cache(), on_progress)
    name = uri.partition("://")[2].rstrip("/").rpartition("/")[2]
    return Fetched(name=name, uri=uri, base_uri=uri, base=model, base_revision=model.revision)


def _base_spec(results: RunResults, base_model: str | None) -> BaseModelSpec:
    trained_on = results.manifest.base_model
    if base_model is not None:
        uri = as_uri(base_model)
        revision = trained_on.revision if uri == trained_on.uri and uri.startswith("hf://") else None
        return _spec({"uri": uri, "revision": revision, "storage": _wire(storage_of_environment())}, "--base-model")
    if trained_on.uri.startswith("pvc://"):
        raise ConfigurationError(
            f"RESULT was trained on {trained_on.uri}, a volume of a cluster that cannot be reached from here; name the "
            "same model elsewhere with --base-model"
        )
    revision = trained_on.revision if trained_on.uri.startswith("hf://") else None
    storage = storage_of_environment() or results.run.base_model.storage
    return _spec({"uri": trained_on.uri, "revision": revision, "storage": _wire(storage)}, "RESULT's base model")


def _same_base(results: RunResults, base: LocalModel, base_model: str | None) -> None:
    """Revisions of one scheme can be compared; a folder and a bucket tell theirs in different ways."""
    trained_on = results.manifest.base_model
    here = trained_on.uri if base_model is None else as_uri(base_model)
    comparable = here.partition("://")[0] == trained_on.uri.partition("://")[0]
    if comparable and base.revision != trained_on.revision:
        raise DataError(
            f"RESULT was trained on {trained_on.uri} at revision {trained_on.revision}, but {here} is at "
            f"{base.revision} now: the pictures would be of another model; name the old one with --base-model"
        )


def _spec(values: dict[str, object], what: str) -> BaseModelSpec:
    try:
        return BaseModelSpec.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError(f"{what} is {values['uri']}: {error.errors()[0]['msg']}") from error


def _wire(storage: Storage | None) -> dict[str, object] | None:
    return storage.wire() if storage is not None else None


def _credentials(role: Role, settings: Settings) -> Credentials:
    folder = settings.credentials_dir
    given = folder is not None and (folder / role.value).is_dir()
    return load_credentials(role, SecretRef(name=role.value) if given else None, folder)
