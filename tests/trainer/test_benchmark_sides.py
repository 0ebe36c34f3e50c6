"""The benchmark's sides: each trains, leaves weights, and says what it measured."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no part of what is installed

from benchmarks.trainer.cases import WARM_UP, Case
from benchmarks.trainer.processes import fill_class_folder, measure, model_of, options_of
from benchmarks.trainer.watch import Measured

ROOT = Path(__file__).parents[2]
DEEPSPEED = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "DS_ACCELERATOR": "cpu",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""As `accelerate launch` tells its processes, with zero2.yaml …"""
ZERO_2 = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}
"""… and with zero2_tuned.yaml."""
TUNED = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "benchmarks/trainer/baseline/zero2_tuned.json"}

SMALL = Case("cpu", "dreamBooth", 1, "tuned", steps=2, small=True, text_encoder=True)
SCRIPTS: dict[str, tuple[Case, dict[str, str], str]] = {
    "lora": (Case("cpu", "lora", 1, "script", 4, checkpoint_every=2), {}, "pytorch_lora_weights.safetensors"),
    "textual inversion": (Case("cpu", "textualInversion", 1, "script", 2), {}, "learned_embeds.safetensors"),
    "dreambooth": (Case("cpu", "dreamBooth", 1, "tuned", 2), {}, "unet/diffusion_pytorch_model.safetensors"),
    "deepspeed": (SMALL, TUNED, "text_encoder/model.safetensors"),
    "deepspeed as documented": (SMALL.by("script"), ZERO_2, ""),
}
"""The last two leave a process group in their process."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of SCRIPTS, with what it made in output/ and what it found in result.json. They share a
    process: most of the time of one goes into imports."""
    folder, given = tmp_path_factory.mktemp("scripts"), []
    for name, (case, environment, _) in SCRIPTS.items():
        if environment and importlib.util.find_spec("deepspeed") is None:
            continue
        work = folder / name
        work.mkdir()
        options = options_of(case, model_of(case, folder), work)
        fill_class_folder(case, options)
        told = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
        (work / "options.json").write_text(json.dumps(told))
        files = {"options": str(work / "options.json"), "result": str(work / "result.json")}
        given.append({**files, "environment": environment})
    (folder / "given.json").write_text(json.dumps(given))
    child = ROOT / "tests/support/benchmark_child.py"
    # threads that wait for each other in so small a model compute nothing
    threads = {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, child, folder / "given.json"], check=True, env={**os.environ, **threads})
    return folder


@pytest.mark.parametrize("name", [name for name, (_, _, weights) in SCRIPTS.items() if weights])
def test_a_script_trains_and_measures(name: str, scripts: Path) -> None:
    case, environment, weights = SCRIPTS[name]
    if environment:
        pytest.importorskip("deepspeed")
    found = Measured(**json.loads((scripts / name / "result.json").read_text()))
    assert found.counted == case.steps - 1
    assert 0 < found.step < found.first < found.job
    assert 0 < found.step_cpu < found.first_cpu
    assert found.resident > 1 << 28, "torch alone is larger"
    assert (found.stall is not None) == (case.checkpoint_every > 0)
    assert (scripts / name / "output" / weights).is_file()


def test_the_script_cannot_train_the_text_encoder_under_deepspeed(scripts: Path) -> None:
    pytest.importorskip("deepspeed")
    found = json.loads((scripts / "deepspeed as documented" / "result.json").read_text())
    assert "multiple models when using DeepSpeed" in found["error"]


@pytest.mark.parametrize(
    ("case", "weights"),
    [
        (
            Case("cpu", "lora", 1, "ours", steps=WARM_UP + 4, checkpoint_every=WARM_UP + 2),
            "pytorch_lora_weights.safetensors",
        ),
        (
            Case("cpu", "dreamBooth", 1, "ours", steps=WARM_UP + 1, small=True, text_encoder=True),
            "text_encoder/model.safetensors",
        ),
    ],
    ids=["lora", "dreamBooth-8-gib"],
)
def test_our_side_trains_and_measures(
    case: Case, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = measure(case, tmp_path)
    assert found.counted == case.steps - WARM_UP
    assert 0 < found.step < found.first < found.job
    assert 0 < found.step_cpu < found.first_cpu
    assert found.resident > 1 << 28, "torch alone is larger"
    assert (found.stall is not None) == (case.checkpoint_every > 0)
    assert list((tmp_path / "work" / "output").rglob(weights))
