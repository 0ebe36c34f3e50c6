"""On a GPU: what a recording that breaks off leaves behind, for the engine that goes on in the same process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.engines.captured import CapturedEngine
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.recording import CudaGraphs, RecordingFailed, being_recorded
from finetune_trainer.planning.falling import gpu_answers
from support.stepping import stepping
from support.training import make_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CUDA = torch.device("cuda", 0)


def break_off(recorder: CudaGraphs) -> None:
    """Records what asks for a number in the middle, after memory was reserved and random numbers drawn."""
    value = torch.ones(1000, device=CUDA)

    def work() -> None:
        torch.nn.functional.dropout(value * 2, 0.5).sum().item()

    with pytest.raises(RecordingFailed, match="captur"), being_recorded():
        recorder.record(work)


def test_the_gpu_is_as_it_was() -> None:
    main = torch.cuda.current_stream(CUDA)
    break_off(CudaGraphs(CUDA))
    assert torch.cuda.current_stream(CUDA) == main
    assert gpu_answers()
    torch.manual_seed(3)
    expected = torch.rand(5, device=CUDA)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(5, device=CUDA), expected)
    torch.cuda.synchronize(CUDA)
    torch.cuda.empty_cache()


def test_another_recorder_still_records() -> None:
    break_off(CudaGraphs(CUDA))
    total = torch.zeros((), device=CUDA)

    def work() -> None:
        total.add_(1)

    again = CudaGraphs(CUDA).record(work)
    again()
    again()
    assert float(total) == 2


def test_an_engine_that_records_nothing_goes_on(tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, whose generator took part in the recording. Prodigy asks for a number in each step."""
    technique = {"lora": {"prompt": "sks dog", "rank": 4, "dropout": 0.3}}
    run = make_run("lora", method=technique, training={"optimizer": {"name": "Prodigy"}, "learningRate": 1})
    expected = stepping(run, EagerEngine(CUDA), tiny_sd, pictures, "cuda")
    losses = [float(expected.step(number).loss) for number in range(3)]
    monkeypatch.setattr("finetune_trainer.engines.captured.not_capturable", lambda spec, module: None)
    with pytest.raises(RecordingFailed, match="captur"):
        stepping(run, CapturedEngine(CUDA), tiny_sd, pictures, "cuda").step(0)
    assert gpu_answers()
    after = stepping(run, EagerEngine(CUDA), tiny_sd, pictures, "cuda")
    assert [float(after.step(number).loss) for number in range(3)] == pytest.approx(losses, rel=1e-4)
