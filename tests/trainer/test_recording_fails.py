"""Steps that cannot be recorded, for a reason that nobody foresaw: where the engine was chosen, another one goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.cli import app
from finetune_trainer.engines.recording import RecordingFailed, being_recorded
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.planning import falling
from finetune_trainer.planning.gathering import gather_facts
from finetune_trainer.planning.plans import Facts
from safetensors.numpy import load_file
from support.samples import BUCKETS, make_shapes
from support.tape import Tape
from typer.testing import CliRunner

STEPS = 6
NOT_PERMITTED = "CUDA error: operation not permitted when stream is capturing"
Recording = Callable[[], None]


class Refusing(Tape):
    """As a GPU refuses: the work breaks off, and the end of the recording says only that it did."""

    def __init__(self, shapes: int) -> None:
        super().__init__()
        self.shapes = shapes
        """That can be recorded."""

    def record(self, work: Recording) -> Recording:
        if self.shapes:
            self.shapes -= 1
            return super().record(work)
        with self._capturing():
            raise RuntimeError(f"{NOT_PERMITTED}\nCUDA kernel errors might be asynchronously reported")
        raise AssertionError("not reached")

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.fixture
def job(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A job with pictures of three shapes. Auto believes that it is on a GPU, where these steps are worth a
    recording."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    make_shapes(pictures)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FINETUNE_LOG_FORMAT", "json")

    def as_on_a_gpu(*args: Any) -> Facts:
        return replace(gather_facts(*args), device="cuda", steps=10_000)

    monkeypatch.setattr("finetune_trainer.training.loop.gather_facts", as_on_a_gpu)

    def write(**engine: str) -> Path:
        spec = {
            "baseModel": {"uri": f"file://{tiny_sd}"},
            "method": {"lora": {"prompt": "a photo of sks dog", "rank": 2}},
            "dataset": {"uri": f"file://{pictures}", "resolution": 96, "buckets": BUCKETS},
            "training": {"steps": STEPS, "learningRate": 2**-7},
            "checkpoints": {"everySteps": 1},
            "validation": {"imagesPerPrompt": 1, "inferenceSteps": 1},
            "output": {"uri": "file://./results"},
            "engine": engine,
        }
        head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "dog"}}
        file = tmp_path / "job.yaml"
        file.write_text(json.dumps({**head, "spec": spec}))
        return file

    return write


def run(file: Path, monkeypatch: pytest.MonkeyPatch, shapes: int, *options: str) -> tuple[int, str]:
    """Exit code and what was said, where so many shapes can be recorded."""
    monkeypatch.setattr("finetune_trainer.engines.captured.recorder_for", lambda device: Refusing(shapes))
    result = CliRunner().invoke(app, ["run", file.name, *options])
    return result.exit_code, result.output


def weights() -> dict[str, np.ndarray]:
    manifest = json.loads(Path("results/manifest.json").read_text())
    return load_file(Path("results", manifest["weights"][0]))


@pytest.mark.parametrize("shapes", [0, 2])
def test_what_was_chosen_is_given_up(shapes: int, job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first shape, and at one that is seen in the middle of the training. The result is the same to the bit."""
    assert run(job(kind="Eager"), monkeypatch, 0, "--overwrite")[0] == 0
    expected = weights()
    code, said = run(job(), monkeypatch, shapes, "--overwrite")
    assert code == 0, said
    assert "engine: Captured (a recorded step is the fastest)" in said
    assert f"Captured: steps could not be recorded ({NOT_PERMITTED}). Once more: Eager." in said
    assert f"engine: Eager (Captured: steps could not be recorded ({NOT_PERMITTED}))" in said
    assert ("going on from the checkpoint of step" in said) == (shapes > 0)
    for name, value in weights().items():
        np.testing.assert_array_equal(value, expected[name])


def test_what_can_be_recorded_is_not_given_up(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = run(job(), monkeypatch, 100)
    assert code == 0, said
    assert "Once more" not in said


def test_what_was_asked_for_is_not_given_up(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = run(job(kind="Captured"), monkeypatch, 0)
    assert code == 78
    wanted = (
        f"spec.engine.kind is Captured, but steps of this training cannot be recorded ({NOT_PERMITTED}); use Auto or"
    )
    assert wanted in said
    assert "Traceback" not in said


def test_a_gpu_that_is_lost_costs_the_attempt_and_the_next_one_begins_without(
    job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends CUDA's context ends all that this process could do."""
    monkeypatch.setattr(falling, "gpu_answers", lambda: False)
    code, said = run(job(), monkeypatch, 0)
    assert code == 1
    assert "the next attempt begins with Eager: this process cannot use the GPU any more" in said
    code, said = run(job(), monkeypatch, 0)
    assert code == 0, said
    assert "engine: Captured" not in said
    assert f"engine: Eager (Captured: steps could not be recorded ({NOT_PERMITTED}))" in said


def test_nobody_is_blamed_for_a_lost_gpu(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that was asked for is no mistake then: another attempt may find a sound GPU."""
    monkeypatch.setattr(falling, "gpu_answers", lambda: False)
    code, said = run(job(kind="Captured"), monkeypatch, 0)
    assert code == 1, said


def test_the_reason_is_the_first_error_of_the_library() -> None:
    with pytest.raises(RecordingFailed, match=r"^asks for a number$"), being_recorded():
        raise AssertionError("asks for a number")
    with pytest.raises(RecordingFailed, match=r"^no such instruction$"), being_recorded():
        try:
            raise RuntimeError("no such instruction") from KeyError("triton")
        except RuntimeError as error:
            raise ValueError("the compiler failed") from error
    with pytest.raises(ConfigurationError, match=r"^as it is$"), being_recorded():
        raise ConfigurationError("as it is")
