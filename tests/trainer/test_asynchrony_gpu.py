"""On a GPU nothing between two steps makes the host wait, and what is copied meanwhile is what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from finetune_trainer.data.ahead import Ahead
from finetune_trainer.engines import StepResult, copies
from finetune_trainer.engines.copies import Snapshot, host_copy
from finetune_trainer.families import load_family
from finetune_trainer.training.readings import Reading, Watch
from support.samples import samples_of
from support.training import make_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
SIDE = 2048
ROUNDS = 200


@contextmanager
def without_waiting() -> Iterator[None]:
    """Whatever would make the host wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("first", [0, 2**30], ids=["from their place", "from a copy on the device"])
def test_a_snapshot_is_of_its_moment(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "COPIED_FIRST", first)
    weights = torch.ones(SIDE, SIDE, device="cuda")
    torch.cuda.synchronize()
    with Snapshot(weights.device):  # pinned memory is taken from the system once, and then used again
        host_copy(weights)
    torch.cuda.synchronize()
    with without_waiting():
        for _ in range(ROUNDS):
            weights.add_(1)
        with Snapshot(weights.device) as snapshot:
            kept = host_copy(weights)
        for _ in range(ROUNDS):
            weights.add_(1)
    snapshot.wait()
    assert kept.device.type == "cpu"
    assert torch.equal(kept, torch.full((SIDE, SIDE), 1.0 + ROUNDS))
    assert float(weights[0, 0]) == 1 + 2 * ROUNDS


def test_a_snapshot_takes_no_room_for_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of convolutions lie channels last; on the host they are contiguous, as files have them."""
    monkeypatch.setattr(copies, "COPIED_FIRST", 0)
    weights = [
        torch.randn(256, 256, 3, 3, device="cuda").to(memory_format=torch.channels_last) + number for number in range(8)
    ]
    every_other = torch.arange(64.0, device="cuda")[::2]
    expected = [one.cpu().contiguous() for one in (*weights, every_other)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["active_bytes.all.peak"]
    with Snapshot(weights[0].device) as snapshot:
        kept = [host_copy(one) for one in (*weights, every_other)]
    assert torch.cuda.memory_stats()["active_bytes.all.peak"] < before + weights[0].nbytes
    snapshot.wait()
    assert all(one.is_contiguous() for one in kept)
    assert [number for number, one in enumerate(kept) if not torch.equal(one, expected[number])] == []


def test_figures_are_read_without_waiting_for_later_steps() -> None:
    device = torch.device("cuda")
    busy = torch.randn(SIDE, SIDE, device=device)
    loss, norm, skipped = (torch.zeros((), device=device) for _ in range(3))
    torch.cuda.synchronize()
    with without_waiting():
        readings = []
        for _ in range(3):
            watch = Watch(device)
            watch.samples_are_there()
            loss += 0.5
            norm += 1
            for _ in range(20):
                busy = busy @ busy
            readings.append(Reading(StepResult(loss, norm, skipped > 0, 0.1), watch))
    figures = [reading.get() for reading in readings]
    assert [(one.loss, one.grad_norm, one.skipped) for one in figures] == [
        (0.5, 1, False),
        (1, 2, False),
        (1.5, 3, False),
    ]
    assert all(one.seconds > 0 for one in figures)
    assert readings[0].get() == figures[0], "as often as it is asked"


@pytest.mark.parametrize("device", [torch.device("cuda"), torch.device("cuda", 0)], ids=str)
def test_batches_go_to_the_gpu_without_a_pause(device: torch.device, tiny_sd: Path, pictures: Path) -> None:
    family = load_family(tiny_sd, device)
    samples = samples_of(make_run("lora"), family, pictures)
    with Ahead(lambda step: [batch.pinned() for batch in samples.step(step)], range(3), device) as ahead:
        for step in range(3):
            (batch,) = ahead.take()
            assert batch.noise.is_pinned()
            assert batch.cond is not None
            with without_waiting():
                moved = batch.to(device)
            assert torch.equal(moved.noise.cpu(), samples.step(step)[0].noise)
            assert moved.cond is not None
            assert moved.cond.embeddings.is_cuda
