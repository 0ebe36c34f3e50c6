"""fp16: the loss is scaled as torch.amp.GradScaler does it, gradients are what they would be without, and the scale
goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.loss_scale import FIRST, LossScale, ScaleState
from finetune_trainer.methods import ParameterGroup
from support.stepping import stepping
from support.toys import batch_of
from support.training import Memory, make_run, train_once
from torch import Tensor, nn

CPU = torch.device("cpu")
FP16 = {"precision": "fp16"}


def test_the_scale_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a hundred steps of which some overflow; it grows after every fifth good one here."""
    monkeypatch.setattr("finetune_trainer.engines.loss_scale.INTERVAL", 5)
    scaler = torch.amp.GradScaler("cpu", growth_interval=5)
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    ours = LossScale(CPU)
    seen = []
    overflows = torch.rand(100, generator=torch.Generator().manual_seed(1)) < 0.15
    for overflow in overflows:
        scaler.scale(parameter.sum() * (float("inf") if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ours.update(overflow)
        seen.append(ours.state().value)
        assert ours.state() == ScaleState(scaler.get_scale(), scaler.state_dict()["_growth_tracker"])
    assert min(seen) < FIRST < max(seen)


def test_the_scale_stops_before_it_is_infinite() -> None:
    scale = LossScale(CPU)
    scale.load(ScaleState(2.0**127, 1999))
    scale.update(torch.tensor(False))
    assert scale.state() == ScaleState(2.0**127, 0)


class Faint(nn.Module):
    """Its gradient with respect to what a float16 layer makes is 1e-9, which float16 does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, 4), 0.5))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = nn.functional.linear(torch.ones(1, 4), self.weight).float().sum(1) * 1e-9
        return losses.sum() * batch.weights.sum(), losses


def test_gradients_that_float16_does_not_have_do_not_vanish() -> None:
    norms = {}
    for precision in ("fp32", "fp16"):
        module, engine = Faint(), EagerEngine(CPU)
        spec = make_run(training={"precision": precision}).training
        engine.prepare(module, [ParameterGroup("all", {"weight": module.weight})], spec, [])
        norms[precision] = float(engine.step([batch_of()], 1.0).grad_norm)
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=1e-2)
    assert torch.tensor(1e-9).half() == 0


def test_it_begins_too_large_and_finds_its_place(tiny_sd: Path, pictures: Path) -> None:
    """Steps that overflow change nothing and halve it; then gradients are those of fp32, as near as float16 can."""
    run = make_run("dreamBooth", training=FP16)
    one = stepping(run, EagerEngine(CPU), tiny_sd, pictures)
    exact = stepping(make_run("dreamBooth"), EagerEngine(CPU), tiny_sd, pictures)
    state = one.engine.state()
    assert state.loss_scale == ScaleState(FIRST, 0)
    one.engine.load(type(state)(state.weights, state.optimizer, None, ScaleState(2.0**40, 7)))
    scales = []
    for _ in range(40):
        result = one.step(0)
        scales.append(one.engine.state().loss_scale)
        if not result.skipped:
            break
        assert all(torch.equal(value, state.weights[name]) for name, value in one.engine.weights().items())
        assert torch.isfinite(result.loss), "what overflows is the gradient"
    assert [scale.value for scale in scales if scale is not None][:3] == [2.0**39, 2.0**38, 2.0**37]
    assert len(scales) > 5
    assert not result.skipped
    expected = exact.step(0)
    assert float(result.loss) == pytest.approx(float(expected.loss), rel=1e-2)
    assert float(result.grad_norm) == pytest.approx(float(expected.grad_norm), rel=3e-2)


def test_the_scale_survives_a_checkpoint(
    tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grows in steps 2 and 4 of the whole training; stopped after the third, it is not begun anew."""
    monkeypatch.setattr("finetune_trainer.engines.loss_scale.INTERVAL", 2)
    monkeypatch.setattr("finetune_trainer.engines.loss_scale.FIRST", 4.0)
    found: list[float] = []
    update = LossScale.update

    def watched(scale: LossScale, skipped: Tensor) -> None:
        update(scale, skipped)
        found.append(scale.state().value)

    monkeypatch.setattr(LossScale, "update", watched)
    run = make_run(training=FP16)
    _, whole = train_once(run, tiny_sd, pictures, tmp_path / "whole")
    assert found == [4.0, 8.0, 8.0, 16.0, 16.0, 32.0]
    found.clear()
    asked = iter(range(3))
    train_once(run, tiny_sd, pictures, tmp_path / "torn", lambda: next(asked, None) is None, Memory())
    _, again = train_once(run, tiny_sd, pictures, tmp_path / "torn")
    assert found == [4.0, 8.0, 8.0, 16.0, 16.0, 32.0]
    assert again.losses == whole.losses


def test_a_state_of_another_precision_is_refused(tiny_sd: Path, pictures: Path) -> None:
    one, other = (stepping(make_run(training=training), EagerEngine(CPU), tiny_sd, pictures) for training in ({}, FP16))
    with pytest.raises(ValueError, match=r"another training\.precision"):
        one.engine.load(other.engine.state())
