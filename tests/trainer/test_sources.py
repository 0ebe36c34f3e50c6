"""Pictures and models from S3, folders and the trainer itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_api.base_model import BaseModelSpec
from finetune_api.dataset import DatasetSpec
from finetune_trainer.credentials import Credentials, Role
from finetune_trainer.errors import ConfigurationError, DataError, Interrupted
from finetune_trainer.sources import fetch_model, fetch_pictures
from support.s3_server import S3Server

PICTURES = {"dog/1.png": b"one", "dog/2.JPG": b"two", "dog/deep/3.webp": b"three"}
OTHERS = {"dog/notes.docx": b"-", "dog/": b"", "cat/4.png": b"four"}


def nothing(done: int, total: int) -> None:
    """Nobody listens."""


def pictures_of(s3: S3Server, uri: str, cache: Path) -> Path:
    spec = DatasetSpec(uri=uri, storage=s3.storage)
    return fetch_pictures(spec, s3.credentials(Role.DATASET), cache, nothing)


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_pictures_below_the_prefix_are_downloaded_and_nothing_else(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    s3.put(bucket, {**PICTURES, **OTHERS})
    folder = pictures_of(s3, f"s3://{bucket}/dog/", tmp_path)
    assert files_in(folder) == {"1.png": b"one", "2.JPG": b"two", "deep/3.webp": b"three"}


def test_the_cache_follows_the_content(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    s3.put(bucket, PICTURES)
    uri = f"s3://{bucket}/dog"
    first = pictures_of(s3, uri, tmp_path)
    (first / "1.png").write_bytes(b"kept")
    assert pictures_of(s3, uri, tmp_path) == first
    assert (first / "1.png").read_bytes() == b"kept", "the same listing is not downloaded again"
    s3.put(bucket, {"dog/1.png": b"new"})
    assert files_in(pictures_of(s3, uri, tmp_path))["1.png"] == b"new"


def test_an_interrupted_download_leaves_nothing_that_looks_whole(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    s3.put(bucket, PICTURES)

    def stop(done: int, total: int) -> None:
        raise Interrupted("stopped")

    spec = DatasetSpec(uri=f"s3://{bucket}/dog/", storage=s3.storage)
    with pytest.raises(Interrupted):
        fetch_pictures(spec, s3.credentials(Role.DATASET), tmp_path, stop)
    assert list((tmp_path / "pictures").iterdir()) == []


@pytest.mark.parametrize(("files", "what"), [({}, "nothing"), ({"dog/notes.txt": b"-"}, "only 1 other objects")])
def test_no_pictures_is_bad_data(s3: S3Server, bucket: str, tmp_path: Path, files: dict[str, bytes], what: str) -> None:
    s3.put(bucket, files)
    with pytest.raises(DataError) as caught:
        pictures_of(s3, f"s3://{bucket}/dog/", tmp_path)
    assert str(caught.value) == (
        f"spec.dataset.uri is s3://{bucket}/dog/, where there are no pictures but {what}; upload PNG, JPEG or WebP "
        "files there, or correct the prefix"
    )


def test_a_model_from_s3_has_no_pickles_and_a_digest(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    s3.put(bucket, {"m/model_index.json": b"{}", "m/unet/a.safetensors": b"w", "m/unet/a.bin": b"a pickle"})
    spec = BaseModelSpec(uri=f"s3://{bucket}/m", storage=s3.storage)
    model = fetch_model(spec, s3.credentials(Role.BASE_MODEL), tmp_path, nothing)
    assert files_in(model.path) == {"model_index.json": b"{}", "unet/a.safetensors": b"w"}
    assert model.revision.startswith("s3-etags:")


def test_a_prefix_without_a_model_is_bad_data(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    spec = BaseModelSpec(uri=f"s3://{bucket}/m", storage=s3.storage)
    with pytest.raises(DataError, match=r"^spec.baseModel.uri is s3://.*where there is no model_index.json; name the"):
        fetch_model(spec, s3.credentials(Role.BASE_MODEL), tmp_path, nothing)


def test_a_folder_is_used_where_it_is(tmp_path: Path) -> None:
    spec = DatasetSpec(uri=f"file://{tmp_path}")
    assert fetch_pictures(spec, Credentials(Role.DATASET), tmp_path, nothing) == tmp_path


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///nowhere/at/all", "spec.dataset.uri is file:///nowhere/at/all, but /nowhere/at/all is not there; "),
        ("pvc://claim/path", "but /mnt/finetune/dataset/path is not there; correct the path within the claim"),
    ],
)
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        fetch_pictures(DatasetSpec(uri=uri), Credentials(Role.DATASET), tmp_path, nothing)
    assert message in str(caught.value)


def test_the_revision_of_a_folder_is_its_content(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    spec = BaseModelSpec(uri=f"file://{tmp_path}")
    first = fetch_model(spec, Credentials(Role.BASE_MODEL), tmp_path, nothing).revision
    (tmp_path / "model_index.json").write_text("{ }")
    assert first != fetch_model(spec, Credentials(Role.BASE_MODEL), tmp_path, nothing).revision
    assert first.startswith("sha256:")


def test_an_unknown_built_in_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^spec.baseModel.uri is builtin://huge, but there is no such"):
        fetch_model(BaseModelSpec(uri="builtin://huge"), Credentials(Role.BASE_MODEL), Path(), nothing)
