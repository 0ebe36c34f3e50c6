"""A run's published results, found again: manifest.json, and the weights that it names, checked against it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from finetune_api import TrainingRun
from pydantic import ValidationError

from finetune_trainer.data.whole_files import write_whole
from finetune_trainer.digests import sha256_of
from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.publish.manifest import MANIFEST, Manifest, ManifestFile
from finetune_trainer.publish.store import Store


@dataclass(frozen=True)
class RunResults:
    """What a run published."""

    uri: str
    """As the user named it."""
    manifest: Manifest
    sha256: str
    """Of manifest.json."""
    run: TrainingRun
    """Its settings."""

    def weights(self) -> Weights:
        """Which of the published files it takes to load what was trained: what is put on the base model where all of
        it is there, else a whole pipeline, else the whole model in one file (and the words beside it)."""
        prefix = f"attempts/{self.manifest.attempt}/"
        names = {file.path.removeprefix(prefix): file for file in self.manifest.files}
        method = self.run.method
        adapter = hypernetwork = None
        words: tuple[ManifestFile, ...] = ()
        if method.lora is not None:
            adapter = _first(names, "lora/pytorch_lora_weights.safetensors", "lora/*.safetensors")
        if method.textual_inversion is not None or (method.lora is not None and method.lora.tokens is not None):
            words = tuple(file for name, file in names.items() if fnmatch(name, "embeddings/*.safetensors"))
        if method.hypernetwork is not None:
            hypernetwork = _first(names, "hypernetwork/*.safetensors")
        # words that were trained together with an adapter say little without it
        if adapter or hypernetwork or (words and method.lora is None):
            return Weights(adapter=adapter, words=words, hypernetwork=hypernetwork)
        pipeline = tuple(file for name, file in names.items() if name.startswith("pipeline/"))
        if pipeline:
            return Weights(pipeline=pipeline)
        single = next((file for name, file in names.items() if "/" not in name and name.endswith(".safetensors")), None)
        return Weights(words=words, single_file=single)

    def drawable(self) -> Weights:
        """`weights`, where this program can load them.

        Raises:
            ConfigurationError: they were only published in formats that are for other programs.
        """
        weights = self.weights()
        if weights.single_file is not None or not weights.files():
            formats = ", ".join(self.run.output.formats or ())
            raise ConfigurationError(
                f"RESULT is {self.uri}, whose weights are there as {formats} only, for other programs; train with "
                "Diffusers among output.formats"
            )
        return weights


@dataclass(frozen=True)
class Weights:
    """Published files by what they hold. Either a pipeline, or what is put on top of the base model, or one file for
    other programs."""

    pipeline: tuple[ManifestFile, ...] = ()
    adapter: ManifestFile | None = None
    words: tuple[ManifestFile, ...] = ()
    hypernetwork: ManifestFile | None = None
    single_file: ManifestFile | None = None

    def files(self) -> list[ManifestFile]:
        """All of them."""
        single = [file for file in (self.single_file, self.adapter, self.hypernetwork) if file is not None]
        return [*self.pipeline, *single, *self.words]


def read_results(uri: str, store: Store) -> RunResults | None:
    """What the manifest.json at `store` says; None when there is none.

    Raises:
        DataError: it is broken, or none of ours.
        ConfigurationError: another version of the trainer wrote settings that this one does not know.
    """
    data = store.get_bytes(MANIFEST)
    if data is None:
        return None
    where = store.uri_of(MANIFEST)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise DataError(
            f"RESULT is {uri}, but {where} is not a manifest of a run ({field or 'the file'}: {problem['msg']}); name "
            "the output.uri of a run that has succeeded"
        ) from error
    try:
        run = TrainingRun.model_validate(manifest.settings)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigurationError(
            f"RESULT is {uri}, whose settings this version of the trainer does not know "
            f"({'.'.join(map(str, problem['loc']))}: {problem['msg']}); use the version that made it: "
            f"{manifest.libraries.get('finetune-operator', 'unknown')}"
        ) from error
    return RunResults(uri, manifest, hashlib.sha256(data).hexdigest(), run)


def fetch_weights(
    results: RunResults, store: Store, cache: Path, on_progress: Callable[[int, int], None]
) -> dict[str, Path]:
    """The weights on this machine, downloaded if need be, each file of the content that the manifest names.

    Args:
        cache: where downloads are kept for later.
        on_progress: hears (done, total) files; what it raises ends the fetching.

    Returns:
        Path within the output → path on this machine. Files of a folder lie in one folder here too.

    Raises:
        DataError: a file is gone, or has another digest.
    """
    files = results.drawable().files()
    folder = cache / "results" / results.sha256[:32]
    found: dict[str, Path] = {}
    for done, file in enumerate(files):
        on_progress(done, len(files))
        found[file.path] = _fetched(results, file, store, folder)
    on_progress(len(files), len(files))
    return found


def _fetched(results: RunResults, file: ManifestFile, store: Store, folder: Path) -> Path:
    if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
        raise DataError(f"RESULT is {results.uri}, whose {MANIFEST} names {file.path}, which is not below it")
    if isinstance(store, FileStore):
        path = store.root / file.path
        if not path.is_file():
            raise _gone(results, file)
        _check(results, file, path)
        return path
    path = folder / file.path
    if path.is_file() and sha256_of(path) == file.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)

    def download(part: Path) -> None:
        try:
            store.get_file(file.path, part)
        except FileNotFoundError as error:
            raise _gone(results, file) from error
        _check(results, file, part)

    write_whole(path, download)
    return path


def _check(results: RunResults, file: ManifestFile, path: Path) -> None:
    actual = sha256_of(path)
    if actual != file.sha256:
        raise DataError(
            f"RESULT is {results.uri}, whose {MANIFEST} names {file.path} with SHA-256 {file.sha256}, but what is "
            f"there has {actual}: it was changed or is broken; copy it anew, or train anew with --overwrite"
        )


def _gone(results: RunResults, file: ManifestFile) -> DataError:
    return DataError(
        f"RESULT is {results.uri}, whose {MANIFEST} names {file.path}, but that is not there; copy the whole folder, "
        "or train anew with --overwrite"
    )


def _first(names: Mapping[str, ManifestFile], *patterns: str) -> ManifestFile | None:
    """The first file by the first pattern that any matches."""
    return next((file for pattern in patterns for name, file in names.items() if fnmatch(name, pattern)), None)
