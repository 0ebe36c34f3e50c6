"""The learning rate that is told is the one in use, also where the optimizer finds it out itself."""

import json
import re
from pathlib import Path

import pytest
from finetune_api import TrainingRun
from finetune_trainer.cli import app
from support.training import Memory, make_pictures, make_run, train_once
from typer.testing import CliRunner

PRODIGY = {"optimizer": {"name": "Prodigy"}, "learningRate": 1.0, "scheduler": {"name": "Linear"}}
"""It begins with a rate of a millionth, and is still looking for a better one when these trainings end."""


def run_for() -> TrainingRun:
    return make_run(training={"steps": 12, **PRODIGY}, checkpoints={"everySteps": 3})


def test_the_rate_that_was_found_survives_an_interruption(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    listener = Memory()
    _, whole = train_once(run_for(), tiny_sd, pictures, tmp_path / "whole", listener=listener)
    assert whole.learning_rates == tuple(report.learning_rate for report in listener.steps)
    assert whole.learning_rates == pytest.approx([1e-6 * (12 - step) / 12 for step in range(12)])
    calls = iter(range(7))
    train_once(run_for(), tiny_sd, pictures, tmp_path / "torn", lambda: next(calls, None) is None)
    _, resumed = train_once(run_for(), tiny_sd, pictures, tmp_path / "torn")
    assert resumed.resumed_from_step == 7
    assert resumed.learning_rates == whole.learning_rates


def test_the_report_shows_the_rate_that_was_found(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_pictures(tmp_path / "pictures")
    spec = {
        "baseModel": {"uri": f"file://{tiny_sd}"},
        "method": {"lora": {"prompt": "sks dog", "rank": 4}},
        "dataset": {"uri": "file://./pictures"},
        "training": {"steps": 8, **PRODIGY},
        "validation": {"imagesPerPrompt": 1, "inferenceSteps": 1},
        "output": {"uri": "file://./results"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "dog"}}
    (tmp_path / "job.yaml").write_text(json.dumps({**head, "spec": spec}))
    result = CliRunner().invoke(app, ["run", "job.yaml"])
    assert result.exit_code == 0, result.output
    (report,) = (tmp_path / "results").glob("attempts/*/report.html")
    text = report.read_text().partition('aria-label="Learning rate over 8 steps"')[2].partition("</svg>")[0]
    points = re.search(r'<polyline class="smooth" points="([^"]+)"', text)
    assert points is not None
    labels = [label.strip() for label in re.findall(r"<text[^>]*>([^<]*)</text>", text)]
    assert labels[:2] == ["1e-06", "1.25e-07"], "and not the factor 1 that the optimizer multiplies it with"
    heights = [float(point.partition(",")[2]) for point in points[1].split()]
    assert len(heights) == 8
    # the origin is at the top left
    assert heights == sorted(heights)
    assert (heights[0], heights[-1]) == (0.0, 180.0)
