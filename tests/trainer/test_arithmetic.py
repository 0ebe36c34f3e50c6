"""Model FLOPs: Stable Diffusion 1.5 has as many as its shapes say, and a step as many as its passes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from finetune_api.training import LossSpec
from finetune_trainer.data.samples import Batch
from finetune_trainer.families import load_family
from finetune_trainer.families.base import Cond, Moments
from finetune_trainer.methods.base import Needs
from finetune_trainer.sources.builtin import open_builtin
from finetune_trainer.training.arithmetic import forward_flops, ideal_seconds, matmul_peak, step_flops
from finetune_trainer.training.step_module import StepModule
from support.training import Memory, make_run, train_once
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no part of what is installed

from benchmarks.trainer.sd15 import UNET


class Call(nn.Module):
    """The denoiser of a step, without the rest."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, batch: Batch) -> Tensor:
        text = batch.cond.embeddings
        prediction: Tensor = self.unet(batch.noise, batch.timesteps, text, return_dict=False)[0]
        return prediction


def batch_of(size: int, channels: int, side: int, cond: Cond | None, ids: Tensor) -> Batch:
    zeros = torch.zeros(size, channels, side, side)
    return Batch(
        moments=Moments(zeros, zeros),
        posterior_noise=zeros,
        noise=zeros,
        timesteps=torch.zeros(size, dtype=torch.int64),
        weights=torch.ones(size),
        token_ids=ids,
        cond=cond,
        sizes=torch.zeros(size, 6),
        masks=None,
        seed=0,
    )


def test_a_forward_pass_of_stable_diffusion_is_803_gflop_an_image() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    assert sum(value.numel() for value in unet.parameters()) == 859_520_964
    batch = batch_of(2, 4, 64, Cond(torch.zeros(2, 77, 768)), torch.zeros(2, 1, 77))
    counted = forward_flops(Call(unet), [batch, batch], torch.device("meta"))
    assert counted / 4 == pytest.approx(0.803e12, rel=0.005)


@pytest.mark.parametrize("live", [False, True])
def test_counting_computes_nothing_and_draws_nothing(live: bool) -> None:
    family = load_family(open_builtin("builtin://tiny-shapes"), torch.device("cpu"))
    ids = family.tokenize(["a circle"] * 2)
    cond = None if live else family.encode_text(ids)
    module = StepModule(family, Needs(live_text_encoder=live), LossSpec()).train()
    batch = batch_of(2, family.latent_channels, 16, cond, ids)
    generator = torch.get_rng_state()
    counted = forward_flops(module, [batch], family.device)
    assert torch.equal(torch.get_rng_state(), generator)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(batch)
    assert counted == counter.get_total_flops()


def test_a_cpu_is_not_measured_before_its_first_step() -> None:
    assert ideal_seconds(nn.Linear(1, 1), [], [], "fp32", torch.device("cpu")) is None


def test_no_training_fails_for_what_cannot_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deciding(nn.Module):
        def forward(self, batch: Batch) -> Tensor:
            return batch.noise if batch.weights.sum().item() > 1 else -batch.noise

    batch = batch_of(1, 4, 8, None, torch.zeros(1, 1, 77))
    with pytest.raises(RuntimeError):
        forward_flops(Deciding(), [batch], torch.device("cpu"))
    assert ideal_seconds(Deciding(), [], [batch], "fp32", torch.device("cuda")) is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), TypeError("a shape is no number")])
def test_no_training_fails_for_what_cannot_be_measured(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> float:
        raise error

    monkeypatch.setattr("finetune_trainer.training.arithmetic.forward_flops", lambda *arguments: 1)
    monkeypatch.setattr("finetune_trainer.training.arithmetic.matmul_peak", full)
    assert ideal_seconds(nn.Linear(1, 1), [], [], "bf16", torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("trained", "held", "expected"),
    [(0, 100, 200), (1, 100, 200), (50, 100, 200), (51, 100, 300), (100, 100, 300)],
)
def test_a_step_is_two_or_three_forward_passes(trained: int, held: int, expected: int) -> None:
    assert step_flops(100, trained, held) == expected


def test_a_cpu_has_a_peak() -> None:
    peak = matmul_peak(torch.device("cpu"), torch.float32)
    assert 1e8 < peak < 1e15, f"{peak:g} FLOPs a second"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_multiplies_faster_in_half_precision() -> None:
    device = torch.device("cuda")
    assert matmul_peak(device, torch.bfloat16) > matmul_peak(device, torch.float32)


def test_every_step_is_told_with_its_ideal_time(
    tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ideal(module: nn.Module, trained: list[Tensor], *others: object) -> float:
        asked.append((sum(value.numel() for value in trained), sum(value.numel() for value in module.parameters())))
        return 0.125

    monkeypatch.setattr("finetune_trainer.training.loop.ideal_seconds", ideal)
    memory = Memory()
    train_once(make_run(training={"steps": 2, "learningRate": 0.01}), tiny_sd, pictures, tmp_path, listener=memory)
    assert [report.ideal_seconds for report in memory.steps] == [0.125, 0.125]
    ((trained, held),) = asked
    assert 0 < trained < held
