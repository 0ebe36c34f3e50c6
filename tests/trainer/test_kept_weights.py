"""Which weights a run's samples are drawn with, and how torch computes while it runs: said and set before it begins."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from finetune_trainer import preparing
from finetune_trainer.cli import app
from finetune_trainer.errors import DataError
from support.tiny_encoders import build_tiny_dino
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pictures").symlink_to(pictures)
    return tmp_path


def run(model: Path, **sections: Mapping[str, object]) -> tuple[int, str]:
    spec = {
        "baseModel": {"uri": f"file://{model}"},
        "method": {"lora": {"prompt": "sks dog", "rank": 4}},
        "dataset": {"uri": "file://./pictures"},
        "validation": {"prompts": ["sks dog", "dog"], "imagesPerPrompt": 2, "inferenceSteps": 2},
        "output": {"uri": "file://./results"},
        **sections,
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "dog"}}
    Path("job.yaml").write_text(json.dumps({**head, "spec": spec}))
    result = CliRunner().invoke(app, ["run", "job.yaml"])
    return result.exit_code, result.output


def test_samples_say_the_step_whose_weights_were_kept(tiny_sd: Path, folder: Path) -> None:
    """Not the step at which the training ended: another run's pictures of other weights must not pass for these."""
    code, output = run(
        tiny_sd,
        training={"steps": 6, "learningRate": 0.05},
        judgement={
            "encoderUri": f"file://{build_tiny_dino(folder / 'dino')}",
            "imagesPerPrompt": 4,
            "everySteps": 2,
            "maxLeak": 1,
        },
        samples={"prompts": ["sks dog"], "imagesPerPrompt": 1, "inferenceSteps": 1},
    )
    assert code == 0, output
    manifest = json.loads(Path("results/manifest.json").read_text())
    kept = manifest["judged"]["bestStep"]
    assert kept < manifest["training"]["steps"] == 6, "or the test would show nothing"
    (generation,) = Path("results").rglob("generation.json")
    told = json.loads(generation.read_text())["modelSha256"]
    assert told == hashlib.sha256(json.dumps([manifest["runSha256"], kept]).encode()).hexdigest()


@pytest.fixture
def as_torch_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.usefixtures("as_torch_was")
def test_torch_is_told_to_be_deterministic_before_a_model_is_loaded(
    deterministic: bool, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS looks for its setting once, with the first weights that it multiplies."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back in the end
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    seen: list[tuple[bool, str | None]] = []

    def loading(*_: object) -> None:
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        raise DataError("far enough")

    monkeypatch.setattr(preparing, "load_family", loading)
    code, output = run(tiny_sd, training={"steps": 1, "deterministic": deterministic})
    assert (code, "far enough" in output) == (65, True)
    assert seen == [(deterministic, ":4096:8" if deterministic else None)]
