"""`finetune run` on a laptop: no cluster, no environment, results in a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from finetune_trainer.cli import app
from PIL import Image
from typer.testing import CliRunner


@pytest.fixture
def job(tmp_path: Path, tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pictures").symlink_to(pictures)
    file = tmp_path / "job.yaml"
    spec = {
        "baseModel": {"uri": f"file://{tiny_sd}"},
        "method": {"lora": {"prompt": "a photo of sks dog", "rank": 2}},
        "dataset": {"uri": "file://./pictures"},
        "training": {"steps": 4, "learningRate": 0.01},
        "validation": {"imagesPerPrompt": 2, "inferenceSteps": 2},
        "output": {"uri": "file://./results"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "dog"}}
    file.write_text(json.dumps({**head, "spec": spec}))
    return file


def run(job: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["run", job.name, *options])
    return result.exit_code, result.stdout


def test_the_paths_of_what_was_made_are_printed_and_load(job: Path, tiny_sd: Path) -> None:
    code, output = run(job)
    assert code == 0
    lines = [line.strip().split("  ") for line in output.splitlines()]
    assert [name for name, _ in lines] == ["weights", "weights", "report", "contact sheet", "manifest"]
    places, weights = dict(lines[1:]), Path(lines[0][1])
    assert places["manifest"] == "results/manifest.json"

    manifest = json.loads(Path(places["manifest"]).read_text())
    for file in manifest["files"]:
        data = Path("results", file["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
    assert manifest["training"]["steps"] == 4
    assert [Path("results", path) for path in manifest["weights"]] == [weights, Path(places["weights"])]
    assert (weights.name, Path(places["weights"]).name) == ("pytorch_lora_weights.safetensors", "dog.safetensors")
    assert Image.open(places["contact sheet"]).width > 400
    assert "a photo of sks dog" in Path(places["report"]).read_text()

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    for file in (weights, Path(places["weights"])):
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
        assert pipeline.get_active_adapters()
        pipeline.unload_lora_weights()


def test_a_second_run_says_that_all_is_done_and_how_to_run_anew(job: Path) -> None:
    first = run(job)[1]
    manifest = Path("results/manifest.json").read_bytes()

    code, output = run(job)
    assert code == 0
    assert output == f"This run is done already. To run it anew: finetune run --overwrite job.yaml\n{first}"
    assert Path("results/manifest.json").read_bytes() == manifest

    code, output = run(job, "--overwrite")
    assert code == 0
    left = sorted(path.suffix for path in Path("results/attempts").iterdir())
    assert left == ["", ".json"], "the old results are gone; the new ones have a folder and a record"
    assert json.loads(manifest)["attempt"] not in output


def test_other_settings_do_not_pass_for_the_same_run(job: Path) -> None:
    run(job)
    job.write_text(job.read_text().replace('"steps": 4', '"steps": 5'))
    result = CliRunner().invoke(app, ["run", "job.yaml"])
    assert result.exit_code == 78
    assert "made with other settings" in result.stderr
    assert result.stderr.strip().endswith("or replace them with --overwrite")


def test_nothing_is_left_of_scratch_files_but_the_caches(job: Path) -> None:
    run(job)
    assert not list(Path("cache/finetune/runs").iterdir())
