"""A GPU whose memory does not suffice: once more with a leaner plan, and then no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_trainer.cli import app
from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.base import StepResult
from finetune_trainer.engines.eager import EagerEngine
from safetensors.numpy import load_file
from typer.testing import CliRunner

STEPS = 4
Full = Callable[[EagerEngine, Sequence[Batch]], bool]


def computes_twice(engine: EagerEngine) -> bool:
    return any(vars(block).get("gradient_checkpointing", False) for block in engine._module.modules())


@pytest.fixture
def job(tmp_path: Path, tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # in lines as wide as they are
    monkeypatch.setenv("FINETUNE_LOG_FORMAT", "json")
    spec = {
        "baseModel": {"uri": f"file://{tiny_sd}"},
        "method": {"lora": {"prompt": "a photo of sks dog", "rank": 2}},
        "dataset": {"uri": f"file://{pictures}"},
        "training": {"steps": STEPS, "learningRate": 0.01, "batchSize": 2},
        "checkpoints": {"everySteps": 1},
        "validation": {"imagesPerPrompt": 1, "inferenceSteps": 1},
        "output": {"uri": "file://./results"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "dog"}}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps({**head, "spec": spec}))
    return file


def run(job: Path, monkeypatch: pytest.MonkeyPatch, is_full: Full, *options: str) -> tuple[int, str, list[int]]:
    """Exit code, what was said, and the number of samples in each piece of each step that was done."""
    done: list[int] = []
    step = EagerEngine.step

    def limited(engine: EagerEngine, batches: Sequence[Batch], factor: float) -> StepResult:
        if is_full(engine, batches):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        done.append(max(len(batch.timesteps) for batch in batches))
        return step(engine, batches, factor)

    monkeypatch.setattr(EagerEngine, "step", limited)
    result = CliRunner().invoke(app, ["run", job.name, *(options or ["--overwrite"])])
    monkeypatch.setattr(EagerEngine, "step", step)
    return result.exit_code, result.output, done


def weights() -> dict[str, np.ndarray]:
    manifest = json.loads(Path("results/manifest.json").read_text())
    return load_file(Path("results", manifest["weights"][0]))


def test_it_goes_on_from_the_last_checkpoint_with_the_next_plan(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said, done = run(job, monkeypatch, lambda engine, batches: False)
    assert code == 0
    assert "engine: Eager (one process on a CPU)" in said
    undisturbed = weights()

    tried: list[bool] = []

    def third_step(engine: EagerEngine, batches: Sequence[Batch]) -> bool:
        tried.append(computes_twice(engine))
        return len(tried) > 2 and not computes_twice(engine)

    code, said, done = run(job, monkeypatch, third_step)
    assert code == 0, said
    assert "Eager ran out of memory. Once more: Eager, activations computed twice." in said
    assert "engine: Eager, activations computed twice (Eager ran out of memory)" in said
    assert done == [2] * STEPS, "no step was done again"
    assert tried == [False] * 3 + [True] * 2
    for name, value in weights().items():
        np.testing.assert_allclose(value, undisturbed[name], rtol=1e-3, atol=1e-6)


def test_what_breaks_because_of_it_is_the_same_and_other_errors_are_not(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recording(engine: EagerEngine, batches: Sequence[Batch]) -> bool:
        if not computes_twice(engine):
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        return False

    code, said, done = run(job, monkeypatch, recording)
    assert (code, done) == (0, [2] * STEPS), said

    def broken(engine: EagerEngine, batches: Sequence[Batch]) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    code, said, done = run(job, monkeypatch, broken)
    assert (code, done) == (1, [])
    assert "Once more" not in said


def test_once_is_enough(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said, done = run(job, monkeypatch, lambda engine, batches: True)
    assert (code, done) == (78, [])
    said = " ".join(said.split())
    assert (
        "spec.engine: Eager, activations computed twice ran out of the GPU's memory, and so did Eager before; use a "
        "smaller training.batchSize, a smaller dataset.resolution, training.optimizer.name AdamW8bit with "
        "training.weightsDtype bf16, engine.kind DeepSpeed with offload, or a GPU with more memory" in said
    )


def test_the_next_attempt_begins_with_the_plan_in_force(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not fall once more from what it did not try."""

    def full_and_then_broken(engine: EagerEngine, batches: Sequence[Batch]) -> bool:
        if len(steps) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if computes_twice(engine):
            steps.append(len(steps))
        return not computes_twice(engine)

    steps: list[int] = []
    code, said, done = run(job, monkeypatch, full_and_then_broken)
    assert (code, done) == (1, [2, 2]), said

    code, said, done = run(job, monkeypatch, lambda engine, batches: not computes_twice(engine), "--")
    assert (code, done) == (0, [2] * (STEPS - 2)), said
    assert "engine: Eager, activations computed twice (Eager ran out of memory)" in said
    assert "Once more" not in said

    # and a run anew knows nothing of it
    code, said, done = run(job, monkeypatch, lambda engine, batches: False)
    assert "engine: Eager (one process on a CPU)" in said


def test_memory_that_did_not_suffice_in_an_earlier_attempt_was_the_first_time(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(engine: EagerEngine, batches: Sequence[Batch]) -> bool:
        if computes_twice(engine):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return True

    assert run(job, monkeypatch, broken)[0] == 1
    code, said, done = run(job, monkeypatch, lambda engine, batches: True, "--")
    assert (code, done) == (78, [])
    assert "Eager, activations computed twice ran out of the GPU's memory, and so did Eager before" in said
    assert "Once more" not in said


def test_a_first_step_that_does_not_fit_begins_anew(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the first try may be half updated by then."""

    def spoiled(engine: EagerEngine, batches: Sequence[Batch]) -> bool:
        if computes_twice(engine):
            return False
        with torch.no_grad():
            for value in engine._parameters.values():
                value.fill_(1e6)
        return True

    code, said, done = run(job, monkeypatch, spoiled)
    assert (code, done) == (0, [2] * STEPS), said
    assert all(np.abs(value).max() < 10 for value in weights().values())
