"""`finetune compare`: each training in a process of its own, measured once, and a table of what came of it."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from finetune_trainer.cli import app
from finetune_trainer.comparison.command import Process
from PIL import Image
from support.tiny_encoders import build_tiny_dino
from typer.testing import CliRunner

METHODS: dict[str, dict[str, object]] = {
    "small": {"lora": {"prompt": "sks dog", "rank": 2}},
    "word": {"textualInversion": {"tokens": [{"placeholder": "<dog>", "initializer": "d"}]}},
}


def compare(*options: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", "jobs.yaml", *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def jobs(tmp_path: Path, tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    encoder = build_tiny_dino(tmp_path / "encoder")
    documents = []
    for name, method in METHODS.items():
        spec = {
            "baseModel": {"uri": f"file://{tiny_sd}"},
            "method": method,
            "dataset": {"uri": f"file://{pictures}"},
            "training": {"steps": 2, "learningRate": 0.01},
            "validation": {"prompts": ["sks dog" if name == "small" else "a <dog>", "dog"], "imagesPerPrompt": 2,
                           "inferenceSteps": 1},
            "judgement": {"encoderUri": f"file://{encoder}", "imagesPerPrompt": 2, "everySteps": 1, "keepBest": False},
            "output": {"uri": "file://./unused"},
        }  # fmt: skip
        head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}}
        documents.append(json.dumps({**head, "spec": spec}))
    (tmp_path / "jobs.yaml").write_text("\n---\n".join(documents))
    return tmp_path


def test_everything_is_measured_once_and_told(jobs: Path) -> None:
    code, output, errors = compare("--seeds", "1", "--fidelity", "0")
    assert code == 0, errors
    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["1 of 2  small-seed-0", "2 of 2  word-seed-0"]
    table = [line for line in lines if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["", "---", "base model", "small", "word"]
    assert Path("compared/comparison.md").read_text() in output

    told = json.loads(Path("compared/comparison.json").read_text())
    small, word = told["rows"]
    for row in (small, word):
        assert {"fidelity", "drift"} <= row["figures"].keys() and row["base"].keys() == row["figures"].keys()
        assert row["seconds"] > row["secondsPerStep"] > 0
        assert 50e6 < row["peakMemoryBytes"] < 8e9
        assert [judged["step"] for judged in row["judged"]][:2] == [1, 2]
        manifest = json.loads(Path("compared", row["results"]).parents[1].joinpath("manifest.json").read_text())
        assert manifest["settings"]["training"]["seed"] == row["seed"] == 0
    files = [Path("compared", small["results"], "lora/pytorch_lora_weights.safetensors")]
    files += list(Path("compared", word["results"]).glob("embeddings/*.safetensors"))
    assert [row["weightsBytes"] for row in (small, word)] == [file.stat().st_size for file in files]
    assert Image.open("compared/contact_sheet.png").width > 300

    rows = Path("compared/rows.jsonl").read_bytes()
    code, again, _ = compare("--seeds", "1", "--fidelity", "0")
    assert code == 0
    assert " of 2  " not in again, "nothing is trained again"
    assert Path("compared/rows.jsonl").read_bytes() == rows
    assert [line for line in again.splitlines() if line.startswith("|")] == table


def test_a_training_that_fails_says_why_and_with_which_code(jobs: Path, pictures: Path) -> None:
    file = jobs / "jobs.yaml"
    (jobs / "none").mkdir()
    file.write_text(file.read_text().replace(str(pictures), str(jobs / "none")))
    code, _, errors = compare("--only", "small", "--seeds", "1")
    assert code == 65
    assert "small-seed-0 ended with 65" in errors and "no pictures found" in errors
    file.write_text(file.read_text().replace("textualInversion", "textualInvention"))
    code, _, errors = compare()
    assert (code, "textualInvention" in errors) == (78, True)


def test_a_folder_that_cannot_be_made(jobs: Path) -> None:
    code, _, errors = compare("--out", "jobs.yaml/below")
    assert (code, "--out is jobs.yaml/below, but" in errors) == (78, True), errors
    assert "choose a folder that you may write" in errors


def test_a_signal_reaches_the_training_and_nothing_outlives_the_command(tmp_path: Path) -> None:
    process, log = Process(), tmp_path / "log"
    command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]

    def stop_when_up() -> None:
        while not log.is_file() or not log.read_text():
            time.sleep(0.01)
        process.stop()

    thread = threading.Thread(target=stop_when_up)
    thread.start()
    code = process.run(command, {}, log)
    thread.join()
    assert code == -signal.SIGTERM
    process.stop()  # there is none any more
