"""What a run's file says reaches the training, from `finetune run` to the published files: results that it starts from,
layers of the text encoder that are left out, weights on the way, the report on the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api import ExitCode
from finetune_trainer.cli import app
from safetensors.torch import load_file
from support.training import make_pictures
from torch import Tensor
from typer.testing import CliRunner

STILL = {"steps": 1, "learningRate": 0.000000001}
"""Too little to move a weight by more than rounding."""
LORA = {"prompt": "sks dog", "rank": 2, "alpha": 1, "trainTextEncoder": True}
TOY = {"placeholder": "<toy>", "vectors": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_pictures(tmp_path / "pictures")
    return tmp_path


def write(name: str, model: Path, method: Mapping[str, object], **sections: Mapping[str, object]) -> str:
    """The job's file."""
    output = {"uri": f"file://./{name}", **sections.pop("output", {})}
    spec = {
        "baseModel": {"uri": f"file://{model}"},
        "method": method,
        "dataset": {"uri": "file://./pictures"},
        "training": {"steps": 2, "learningRate": 0.01},
        "validation": {"imagesPerPrompt": 1, "inferenceSteps": 1},
        "output": output,
        **sections,
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}}
    Path(f"{name}.yaml").write_text(json.dumps({**head, "spec": spec}))
    return f"{name}.yaml"


def run(name: str, model: Path, method: Mapping[str, object], **sections: Mapping[str, object]) -> Path:
    """The folder with the results of `finetune run`."""
    result = CliRunner().invoke(app, ["run", write(name, model, method, **sections)])
    assert result.exit_code == 0, result.output
    return Path(name, "attempts", manifest(name)["attempt"])


def manifest(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(Path(name, "manifest.json").read_text())
    return read


@pytest.mark.parametrize("written", ["pytorch_lora_weights", "first"], ids=["Diffusers", "kohya"])
def test_a_lora_goes_on_from_what_an_earlier_run_published(written: str, tiny_sd: Path) -> None:
    file = "lora/pytorch_lora_weights.safetensors"
    first = run("first", tiny_sd, {"lora": LORA})
    start = f"file://./{first}/lora/{written}.safetensors"
    second = run("second", tiny_sd, {"lora": LORA | {"continueFrom": start}}, training=STILL)
    before, after = load_file(first / file), load_file(second / file)
    assert before.keys() == after.keys()
    assert max(float(value.abs().max()) for key, value in before.items() if "lora_B" in key) > 0.005
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_word_goes_on_from_what_an_earlier_run_published(suffix: str, tiny_sd: Path) -> None:
    def words(folder: Path) -> Tensor:
        (rows,) = load_file(folder / "embeddings/toy.safetensors").values()
        return rows

    formats = {"formats": ["Diffusers", "Automatic1111"]}
    token = TOY | {"initializer": "d o"}
    first = run("first", tiny_sd, {"textualInversion": {"tokens": [token]}}, output=formats)
    start = TOY | {"initialEmbeddingUri": f"file://./{first}/embeddings/toy.{suffix}"}
    second = run("second", tiny_sd, {"textualInversion": {"tokens": [start]}}, training=STILL)
    untrained = run("third", tiny_sd, {"textualInversion": {"tokens": [token]}}, training=STILL)
    torch.testing.assert_close(words(second), words(first), rtol=1e-4, atol=1e-6)
    assert (words(untrained) - words(first)).abs().max() > 0.001


def test_layers_of_the_text_encoder_that_are_left_out(tiny_sd: Path) -> None:
    """The tiny one has two."""
    job = write("dog", tiny_sd, {"lora": LORA}, training=STILL | {"clipSkip": 2})
    result = CliRunner().invoke(app, ["run", job])
    assert result.exit_code == ExitCode.BAD_CONFIGURATION
    said = " ".join(result.output.split())
    assert "training.clipSkip is 2, but text_encoder of this model has 2 layers; use at most 1" in said


def test_weights_on_the_way_and_the_report_on_the_data_are_published(tiny_sd: Path) -> None:
    results = run(
        "dog", tiny_sd, {"lora": LORA}, training={"steps": 4, "learningRate": 0.01}, exports={"everySteps": 2}
    )
    file = "lora/pytorch_lora_weights.safetensors"
    half, end = (load_file(next(Path("dog/exports").rglob(f"0000000{step}-*/{file}"))) for step in (2, 4))
    whole = load_file(results / file)
    assert half.keys() == end.keys() == whole.keys()
    assert all(torch.equal(end[key], whole[key]) for key in whole)
    assert not any(torch.equal(half[key], whole[key]) for key in whole)
    data = json.loads((results / "data_report.json").read_text())
    assert (data["pictures"], data["samples_per_epoch"], data["captions"]) == (3, 3, 1)
    report = (results / "report.html").read_text()
    for words in ("3; 3 samples in a pass", "Learning rate", "0.01", "sks dog"):
        assert words in report, words
