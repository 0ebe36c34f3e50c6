"""hf:// against a stand-in of the Hub, through the real huggingface_hub in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.errors import DataError
from finetune_trainer.sources.kinds import wanted_files
from support.hub import COMMIT, GATED, REPO, TOKEN, Hub, hub

# the layout of stable-diffusion-v1-5, in small
WANTED = {
    "model_index.json": b'{"of": "model_index.json"}',
    "scheduler/scheduler_config.json": b'{"of": "scheduler"}',
    "text_encoder/config.json": b'{"of": "text_encoder"}',
    "text_encoder/model.safetensors": b"text encoder",
    "tokenizer/merges.txt": b"merges",
    "tokenizer/vocab.json": b'{"of": "tokenizer"}',
    "unet/config.json": b'{"of": "unet"}',
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors": b"unet, first shard",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors": b"unet, second shard",
    "unet/diffusion_pytorch_model.safetensors.index.json": b'{"of": "shards"}',
    "vae/config.json": b'{"of": "vae"}',
    "vae/diffusion_pytorch_model.safetensors": b"vae",
}
UNWANTED = {
    ".gitattributes": b"",
    "README.md": b"",
    "v1-5-pruned.safetensors": b"the same weights once more, 7 GB",
    "v1-5-pruned.ckpt": b"a pickle",
    "safety_checker/model.safetensors": b"never loaded",
    "text_encoder/pytorch_model.bin": b"a pickle",
    "unet/diffusion_pytorch_model.bin": b"a pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"without average",
    "vae/diffusion_flax_model.msgpack": b"flax",
    "vae/diffusion_pytorch_model.bin": b"a pickle",
}

FETCH = """
import json, sys
from pathlib import Path
from finetune_api.base_model import BaseModelSpec
from finetune_trainer.credentials import Credentials, Role
from finetune_trainer.errors import RunError
from finetune_api.outputs import JudgementSpec
from finetune_trainer.sources import fetch_encoder, fetch_model
spec, token, cache = BaseModelSpec.model_validate_json(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
judgement = JudgementSpec(encoder_uri=sys.argv[4] or None)
secret = spec.secret_ref.name if spec.secret_ref else None
credentials = Credentials(Role.BASE_MODEL, secret, {"HF_TOKEN": token}, ambient=secret is None)
try:
    if judgement.encoder_uri is None:
        model = fetch_model(spec, credentials, cache, lambda done, total: None)
    else:
        model = fetch_encoder(judgement, spec, credentials, cache, lambda done, total: None)
    print(json.dumps({"path": str(model.path), "revision": model.revision}))
except RunError as error:
    print(json.dumps({"error": str(error), "code": error.exit_code}))
"""


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub({**WANTED, **UNWANTED}) as running:
        yield running


def fetch(server: Hub, cache: Path, token: str = "", encoder: str = "", **spec: object) -> dict[str, object]:
    """A process of its own, since huggingface_hub reads HF_ENDPOINT when it is imported. Fetches the base model, or
    the encoder beside it."""
    text = json.dumps({"uri": f"hf://{REPO}", **spec})
    environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(cache / "home"), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, text, token, str(cache), encoder],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout)


def test_only_data_is_downloaded_and_the_branch_becomes_a_commit(server: Hub, tmp_path: Path) -> None:
    found = fetch(server, tmp_path, revision="main")
    assert found["revision"] == COMMIT
    folder = Path(str(found["path"]))
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == WANTED
    assert sorted(server.asked_for) == sorted(WANTED), "nothing else was even asked for"


def test_what_is_in_the_cache_is_not_downloaded_again(server: Hub, tmp_path: Path) -> None:
    first = fetch(server, tmp_path)
    server.asked_for.clear()
    assert fetch(server, tmp_path) == first
    assert server.asked_for == []


def test_a_private_model_needs_the_token_of_its_secret(server: Hub, tmp_path: Path) -> None:
    server.private = True
    secret = {"secretRef": {"name": "hub"}}
    assert fetch(server, tmp_path, TOKEN, **secret)["revision"] == COMMIT
    refused = fetch(server, tmp_path / "other", "hf_wrong", **secret)
    assert refused == {
        "error": f"spec.baseModel.uri is hf://{REPO}, but the Hub shows no such model; correct the name, unless "
        "HF_TOKEN in spec.baseModel.secretRef.name hub may not read it",
        "code": 78,
    }


def test_an_encoder_is_read_beside_a_base_model_whose_secret_is_for_a_store(server: Hub, tmp_path: Path) -> None:
    """That Secret has keys for S3 and no HF_TOKEN; where it has one, it is used."""
    server.files |= {"config.json": b"{}", "model.safetensors": b"encoder"}
    beside = {"uri": "s3://models/sd", "secretRef": {"name": "store"}, "encoder": f"hf://{REPO}"}
    folder = Path(str(fetch(server, tmp_path, **beside)["path"]))
    assert (folder / "model.safetensors").read_bytes() == b"encoder"
    server.private = True
    assert fetch(server, tmp_path / "other", TOKEN, **beside)["revision"] == COMMIT
    assert fetch(server, tmp_path / "third", **beside) == {
        "error": f"spec.judgement.encoderUri is hf://{REPO}, but the Hub shows no such model; correct the name, unless "
        "it is private: then name a Secret with HF_TOKEN",
        "code": 78,
    }


@pytest.mark.parametrize(
    ("spec", "token", "error"),
    [
        (
            {"uri": "hf://someone/elsewhere"},
            "",
            "spec.baseModel.uri is hf://someone/elsewhere, but the Hub shows no such model; correct the name, unless "
            "it is private: then name a Secret with HF_TOKEN",
        ),
        (
            {"revision": "v9"},
            "",
            f"spec.baseModel.revision is v9, but hf://{REPO} has no such branch, tag or commit; correct it",
        ),
        (
            {"uri": f"hf://{GATED}"},
            "",
            f"spec.baseModel.uri is hf://{GATED}, a gated model: accept its terms on the Hub and name a Secret with "
            "HF_TOKEN in its secretRef",
        ),
        (
            {"secretRef": {"name": "hub"}},
            "",
            "spec.baseModel.secretRef.name is hub, but that Secret does not exist in the job's namespace or has no key "
            "HF_TOKEN; create it with these keys",
        ),
    ],
)
def test_what_only_the_user_can_mend_names_the_field(
    server: Hub, tmp_path: Path, spec: dict[str, object], token: str, error: str
) -> None:
    assert fetch(server, tmp_path, token, **spec) == {"error": error, "code": 78}


def test_a_model_without_safetensors_is_refused(server: Hub, tmp_path: Path) -> None:
    del server.files["vae/diffusion_pytorch_model.safetensors"]
    assert fetch(server, tmp_path) == {
        "error": f"spec.baseModel.uri is hf://{REPO} (commit {COMMIT}): its vae is not there as safetensors; choose a "
        "model that has all parts so",
        "code": 65,
    }
    assert server.asked_for == []


def test_a_hub_that_fails_may_work_later(server: Hub, tmp_path: Path) -> None:
    server.failing = True
    assert fetch(server, tmp_path) == {"error": f"the Hub failed on hf://{REPO} (500)", "code": 1}


def test_half_precision_is_taken_where_there_is_nothing_else() -> None:
    names = ["model_index.json", *(f"{part}/model.fp16.safetensors" for part in ("unet", "vae", "text_encoder"))]
    assert wanted_files(names) == sorted(names)
    assert "unet/model.fp16.safetensors" not in wanted_files([*names, *(n.replace(".fp16", "") for n in names)])


def test_a_single_file_model_is_no_pipeline() -> None:
    with pytest.raises(DataError, match=r"has no model_index\.json"):
        wanted_files(["model.safetensors"])
