"""What a run fetches beside the base model and the pictures: captions, files to start from, the encoder that judges."""

import hashlib
from pathlib import Path

import pytest
from finetune_api.base_model import BaseModelSpec
from finetune_api.dataset import DatasetSpec
from finetune_api.methods import MethodSpec
from finetune_api.outputs import JudgementSpec
from finetune_trainer.credentials import Credentials, Role
from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.s3 import S3Location
from finetune_trainer.sources import fetch_encoder, fetch_pictures
from finetune_trainer.sources.files import fetch_files
from finetune_trainer.sources.kinds import wanted_encoder_files, wanted_files
from finetune_trainer.sources.s3 import RemoteFile, find_file
from support.s3_server import S3Server


def nothing(done: int, total: int) -> None:
    """Nobody looks at the progress."""


def pivotal(lora: str, embedding: str) -> MethodSpec:
    tokens = [{"placeholder": "<dog>", "initialEmbeddingUri": embedding}]
    return MethodSpec.model_validate({"lora": {"prompt": "a <dog>", "continueFrom": lora, "tokens": tokens}})


def test_files_to_start_from_come_from_the_output_and_from_this_machine(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    s3.put(bucket, {"old/lora/a.safetensors": b"matrices", "old/lora/b.safetensors": b"others"})
    (tmp_path / "dog.pt").write_bytes(b"rows")
    lora, embedding = f"s3://{bucket}/old/lora/a.safetensors", f"file://{tmp_path / 'dog.pt'}"
    files = fetch_files(pivotal(lora, embedding), s3.credentials(Role.OUTPUT), s3.storage, tmp_path / "cache")
    assert files.path(lora).read_bytes() == b"matrices"
    assert files.path(embedding).read_bytes() == b"rows"
    assert [path.name for path in (tmp_path / "cache").rglob("*.safetensors")] == ["a.safetensors"]


def test_of_a_large_folder_only_the_file_itself_is_asked_for(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that only begin like it are others; and one that is not there is not found in them."""
    s3.put(bucket, {f"all/{name}": name.encode() for name in ("a", "a.safetensors", "a.safetensors.old", "b")})
    location = s3.location(f"s3://{bucket}/all")
    seen: list[str] = []
    client = location.client()
    client.meta.events.register(
        "after-call.s3", lambda parsed, **_: seen.extend(item["Key"] for item in parsed.get("Contents", []))
    )
    monkeypatch.setattr(S3Location, "client", lambda self: client)
    assert find_file(location, "a.safetensors") == RemoteFile(
        "a.safetensors", 13, hashlib.md5(b"a.safetensors", usedforsecurity=False).hexdigest()
    )
    assert seen == ["all/a.safetensors"]
    assert find_file(location, "a.safe") is None
    assert find_file(location, "a.safetensors.older") is None
    assert find_file(s3.location(f"s3://{bucket}"), "all/b") is not None


@pytest.mark.parametrize(
    ("lora", "embedding", "field"),
    [
        ("file:///nowhere.safetensors", "file:///nowhere.pt", "spec.method.lora.continueFrom is file:///nowhere.saf"),
        ("s3://{bucket}/a.safetensors", "file:///nowhere.pt", "initialEmbeddingUri is file:///nowhere.pt"),
        ("s3://{bucket}/none.safetensors", "file:///x", "there is no such object, or spec.output.secretRef may not"),
    ],
)
def test_a_file_that_is_not_there_is_named(
    s3: S3Server, bucket: str, tmp_path: Path, lora: str, embedding: str, field: str
) -> None:
    s3.put(bucket, {"a.safetensors": b"matrices"})
    method = pivotal(lora.format(bucket=bucket), embedding)
    with pytest.raises(ConfigurationError, match=field):
        fetch_files(method, s3.credentials(Role.OUTPUT), s3.storage, tmp_path)


def test_captions_that_are_files_are_fetched_with_the_pictures(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    s3.put(bucket, {"d/a.png": b"a", "d/a.txt": b"a dog", "d/metadata.jsonl": b"{}", "d/a.psd": b"layers"})

    def names(**captions: str) -> list[str]:
        spec = DatasetSpec.model_validate({"uri": f"s3://{bucket}/d/", "captions": captions or None})
        spec = spec.model_copy(update={"storage": s3.storage})
        folder = fetch_pictures(spec, s3.credentials(Role.DATASET), tmp_path, nothing)
        return sorted(path.name for path in folder.iterdir())

    assert names() == ["a.png"]
    assert names(source="Sidecar") == ["a.png", "a.txt"]
    assert names(source="Jsonl") == ["a.png", "metadata.jsonl"]


def test_the_encoder_is_read_with_the_base_models_credentials(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    s3.put(bucket, {"dino/config.json": b"{}", "dino/model.safetensors": b"w", "empty/readme.txt": b"-"})
    base = BaseModelSpec(uri="builtin://tiny-shapes", storage=s3.storage)

    def fetch(uri: str | None) -> Path | None:
        encoder = fetch_encoder(
            JudgementSpec(encoder_uri=uri), base, s3.credentials(Role.BASE_MODEL), tmp_path, nothing
        )
        return None if encoder is None else encoder.path

    found = fetch(f"s3://{bucket}/dino")
    assert found is not None
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors"]
    assert fetch(None) is None
    with pytest.raises(DataError, match=r"^spec\.judgement\.encoderUri is .*where there is no config\.json; name the"):
        fetch(f"s3://{bucket}/empty")


def test_what_the_hub_has_of_an_encoder_and_of_sdxl() -> None:
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "preprocessor_config.json", "onnx/model.onnx"]
    assert wanted_encoder_files(files) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    with pytest.raises(DataError, match=r"it has no model\.safetensors"):
        wanted_encoder_files(["config.json", "pytorch_model.bin"])
    parts = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    parts |= {"text_encoder": "model", "text_encoder_2": "model"}
    sdxl = [
        "model_index.json",
        "tokenizer_2/vocab.json",
        *(f"{part}/{name}.safetensors" for part, name in parts.items()),
    ]
    assert wanted_files(sdxl) == sorted(sdxl)
    with pytest.raises(DataError, match="its text_encoder_2 is not there as safetensors"):
        wanted_files([*sdxl[:-1], "text_encoder_2/model.bin"])


def test_no_secret_is_needed_for_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    uri = f"file://{tmp_path}/a"
    assert fetch_files(pivotal(uri, uri), Credentials(Role.OUTPUT), None, tmp_path).path(uri) == tmp_path / "a"
