"""On a GPU: whole runs from a file to what is published, as users start them, once for each way in which steps are
executed. Whatever else a GPU does differently (threads, streams, devices by number) is met here first."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from finetune_trainer.cli import app
from safetensors.torch import load_file
from support.samples import BUCKETS, make_shapes
from typer.testing import CliRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
STEPS = 6
HEAD = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "dog"}}
OFFLOADED = {"kind": "DeepSpeed", "zeroStage": 2, "offloadOptimizer": "Cpu"}


def finetune(folder: Path, model: Path, method: dict[str, object], **sections: dict[str, object]) -> str:
    """What `finetune run` said of a job that draws, exports, averages and makes checkpoints between its steps, with
    pictures of several shapes. In a process of its own, with whatever GPU there is."""
    pictures = folder / "pictures"
    if not pictures.exists():
        pictures.mkdir()
        make_shapes(pictures)
    spec: dict[str, dict[str, object]] = {
        "baseModel": {"uri": f"file://{model}"},
        "method": method,
        "dataset": {"uri": "file://./pictures", "resolution": 96, "buckets": BUCKETS},
        "training": {"steps": STEPS, "learningRate": 1e-3, "ema": True},
        "validation": {"imagesPerPrompt": 1, "inferenceSteps": 1, "everySteps": 2},
        "exports": {"everySteps": 3},
        "checkpoints": {"everySteps": 2},
        "output": {"uri": "file://./results"},
    }
    for section, values in sections.items():
        spec[section] = {key: value for key, value in (spec.get(section, {}) | values).items() if value is not None}
    (folder / "job.yaml").write_text(json.dumps({**HEAD, "spec": spec}))
    given = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "FINETUNE_LOG_FORMAT": "json"}
    ended = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "run", "--overwrite", "job.yaml"],
        check=False,
        cwd=folder,
        env=given,
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said[-20_000:]
    assert "Traceback" not in said, said[-20_000:]
    return said


def losses_and_weights(folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    manifest = json.loads((folder / "results/manifest.json").read_text())
    assert manifest["training"]["steps"] == STEPS
    assert manifest["training"]["device"] == torch.cuda.get_device_name()
    return manifest["training"]["loss"], load_file(folder / "results" / manifest["weights"][0])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["Captured", "Compiled", "Sharded"])
def test_every_engine_comes_to_what_the_eager_one_does(
    kind: str, precision: str, tmp_path: Path, tiny_sd: Path
) -> None:
    method: dict[str, object] = {"lora": {"prompt": "a photo of sks dog", "rank": 4}}
    said = finetune(tmp_path, tiny_sd, method, engine={"kind": "Eager"}, training={"precision": precision})
    assert "engine: Eager" in said
    loss, weights = losses_and_weights(tmp_path)
    said = finetune(tmp_path, tiny_sd, method, engine={"kind": kind}, training={"precision": precision})
    assert f"engine: {kind}" in said
    assert "Once more" not in said, "neither out of memory nor what cannot be recorded"
    found, others = losses_and_weights(tmp_path)
    assert found == pytest.approx(loss, rel=1e-3 if precision == "fp32" else 5e-2)
    assert others.keys() == weights.keys()
    assert all(bool(torch.isfinite(value).all()) for value in others.values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("offload", ["None", "Cpu"])
def test_deepspeed_with_the_text_encoder(offload: str, precision: str, tmp_path: Path, tiny_sd: Path) -> None:
    """Parameters on the host too: what the example scripts cannot do."""
    if find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    method: dict[str, object] = {"dreamBooth": {"prompt": "a photo of sks dog", "trainTextEncoder": True}}
    engine = OFFLOADED if offload == "None" else OFFLOADED | {"zeroStage": 3, "offloadParameters": "Cpu"}
    said = finetune(tmp_path, tiny_sd, method, engine=engine, training={"precision": precision})
    assert "engine: DeepSpeed" in said


def test_auto_records_steps_that_are_worth_it(tmp_path: Path, tiny_sd: Path) -> None:
    """With nothing said of engine or precision, and one shape."""
    method: dict[str, object] = {"lora": {"prompt": "a photo of sks dog", "rank": 4}}
    said = finetune(
        tmp_path, tiny_sd, method, training={"steps": 40}, validation={"everySteps": 20}, dataset={"buckets": None}
    )
    assert "engine: Captured" in said
    assert "Once more" not in said


@pytest.mark.parametrize("kind", ["Eager", "Captured"])
def test_a_deterministic_training_is_the_same_again(kind: str, tmp_path: Path, tiny_sd: Path) -> None:
    """To the bit, in another process."""
    method: dict[str, object] = {"dreamBooth": {"prompt": "a photo of sks dog", "trainTextEncoder": True}}
    sums = []
    for _ in range(2):
        finetune(tmp_path, tiny_sd, method, engine={"kind": kind}, training={"deterministic": True})
        files = json.loads((tmp_path / "results/manifest.json").read_text())["files"]
        places = {file["path"]: file["sha256"] for file in files if file["path"].endswith(".safetensors")}
        # beneath the attempt's own folder
        sums.append({path.split("/", 2)[2]: found for path, found in places.items() if path.startswith("attempts/")})
    assert sums[0]
    assert sums[0] == sums[1]


def test_what_does_not_fit_falls_to_a_leaner_plan_in_the_same_process(
    tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned for far more memory than there is: three quarters of what the chosen plan takes."""
    monkeypatch.setattr("finetune_trainer.planning.gathering.memory_of", lambda device: 2**40)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FINETUNE_LOG_FORMAT", "json")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    make_shapes(tmp_path / "pictures")
    spec = {
        "baseModel": {"uri": f"file://{tiny_sd}"},
        "method": {"dreamBooth": {"prompt": "a photo of sks dog"}},
        "dataset": {"uri": "file://./pictures", "resolution": 512},
        "training": {"steps": 40, "learningRate": 1e-3, "batchSize": 16},
        "validation": {"imagesPerPrompt": 1, "inferenceSteps": 1},
        "output": {"uri": "file://./results"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps({**HEAD, "spec": spec}))

    def run() -> str:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        ended = CliRunner().invoke(app, ["run", "--overwrite", "job.yaml"])
        assert ended.exit_code == 0, ended.output
        return ended.output

    assert "Once more" not in run()
    peak, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.75 * peak / total)
    try:
        said = run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "ran out of memory. Once more: " in said
