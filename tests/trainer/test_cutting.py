"""Micro-batches in pieces: the same step with less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.engines import make_engine
from finetune_trainer.engines.cutting import CuttingEngine, cut
from finetune_trainer.engines.eager import EagerEngine
from support.allocations import peak_bytes
from support.prepared import prepared
from support.stepping import numbers_of, stepping
from support.training import make_run
from torch import Tensor

CPU = torch.device("cpu")
RUN = make_run("dreamBooth", training={"batchSize": 5, "gradientAccumulationSteps": 2, "ema": True})


def test_every_sample_is_in_one_piece(tiny_sd: Path, pictures: Path) -> None:
    batch = prepared(RUN, tiny_sd, pictures).samples.step(0)[0]
    pieces = cut(batch, 3)
    assert [len(piece.timesteps) for piece in pieces] == [2, 2, 1]
    assert len({piece.seed for piece in pieces}) == 3
    for name in ("noise", "posterior_noise", "timesteps", "weights", "token_ids", "sizes"):
        torch.testing.assert_close(torch.cat([getattr(piece, name) for piece in pieces]), getattr(batch, name))
    assert batch.cond is not None
    embeddings = [piece.cond.embeddings for piece in pieces if piece.cond is not None]
    torch.testing.assert_close(torch.cat(embeddings), batch.cond.embeddings)
    assert [piece.masks for piece in pieces] == [None] * 3
    assert [len(piece.timesteps) for piece in cut(batch, 9)] == [1] * 5, "no piece is empty"


def test_steps_are_the_same(tiny_sd: Path, pictures: Path) -> None:
    """But for the rounding of sums."""
    whole, pieces = (stepping(RUN, make_engine(RUN.engine, CPU, cuts=cuts), tiny_sd, pictures) for cuts in (1, 2))
    assert isinstance(pieces.engine, CuttingEngine)
    for number in range(3):
        expected, found = whole.step(number), pieces.step(number)
        assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-5)
        assert float(found.grad_norm) == pytest.approx(float(expected.grad_norm), rel=1e-4)
        assert found.learning_rate == expected.learning_rate
    start = numbers_of(stepping(RUN, EagerEngine(CPU), tiny_sd, pictures).engine.state())
    expected_state, found_state = numbers_of(whole.engine.state()), numbers_of(pieces.engine.state())
    names = [name for name in start if name.startswith("weights/")]

    def way(state: dict[str, Tensor]) -> Tensor:
        return torch.cat([(state[name] - start[name]).flatten() for name in names])

    assert torch.linalg.norm(way(found_state) - way(expected_state)) < 1e-3 * torch.linalg.norm(way(expected_state))


def test_it_takes_less_memory(tiny_sd: Path, pictures: Path) -> None:
    run = make_run("dreamBooth", training={"batchSize": 4}, dataset={"resolution": 64})
    peaks = []
    for cuts in (1, 4):
        made = stepping(run, make_engine(run.engine, CPU, cuts=cuts), tiny_sd, pictures)
        made.step(0)
        peaks.append(peak_bytes(lambda made=made: made.step(1)))
    assert peaks[1] < 0.45 * peaks[0]
