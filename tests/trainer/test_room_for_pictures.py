"""Where a GPU's memory does not suffice for what is done between steps, the engine gives back what steps alone need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetune_trainer.planning.falling import PlanFailed
from support.duties import Scripted
from support.tape import Tape
from support.training import Memory, Trained, make_run, train_once

STEPS = 6


class Counting(Tape):
    """As a GPU: what it has recorded takes memory."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.recorded = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.held += 1
        self.recorded += 1
        return super().record(work)

    def make_room(self) -> None:
        self.held = 0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Counting:
    recorder = Counting()
    monkeypatch.setattr("finetune_trainer.engines.captured.recorder_for", lambda device: recorder)
    return recorder


def trained(
    kind: str, duty: Scripted, model: Path, pictures: Path, folder: Path, listener: Memory | None = None
) -> Trained:
    run = make_run(training={"steps": STEPS, "learningRate": 2**-7, "ema": True}, engine={"kind": kind})
    return train_once(run, model, pictures, folder, listener=listener, duties_of=lambda family: [duty])[1]


def full(step: int) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_pictures_that_did_not_fit_beside_the_recordings_are_drawn_without(
    recorder: Counting, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    """And the training is what it would have been."""

    def needs_all(step: int) -> None:
        if step == 4 and recorder.held:
            full(step)

    expected = trained("Captured", Scripted(), tiny_sd, pictures, tmp_path / "a")
    assert recorder.recorded == 1
    recorder.held = 0
    duty, listener = Scripted(look=needs_all), Memory()
    found = trained("Captured", duty, tiny_sd, pictures, tmp_path / "b", listener)
    assert (duty.asked, duty.finished) == ([2, 4, 4, 6], [2, 4, 6])
    assert recorder.recorded == 3, "and once more"
    assert found.losses == expected.losses
    assert any("After step 4 the GPU's memory did not suffice" in message for message in listener.messages)


@pytest.mark.parametrize(("kind", "asked"), [("Captured", [2, 2]), ("Eager", [2])])
def test_what_does_not_fit_at_all_is_told(
    kind: str, asked: list[int], recorder: Counting, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    duty = Scripted(look=full)
    with pytest.raises(PlanFailed, match="ran out of the GPU's memory"):
        trained(kind, duty, tiny_sd, pictures, tmp_path)
    assert duty.asked == asked
