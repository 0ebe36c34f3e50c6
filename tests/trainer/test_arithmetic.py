"""Model FLOPs: Stable Diffusion 1.5 has as many as its shapes say, and a step as many as its passes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from finetune_trainer.training.arithmetic import forward_flops, matmul_peak, step_flops
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no part of what is installed

from benchmarks.trainer.sd15 import UNET


class Call(nn.Module):
    """The denoiser of a step, on shapes alone."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, batch: Given) -> Tensor:
        prediction: Tensor = self.unet(batch.noisy, batch.timesteps, batch.text, return_dict=False)[0]
        return prediction


class Given:
    """As much of a Batch as `Call` needs: two pictures of 512 pixels."""

    noisy = torch.empty(2, 4, 64, 64, device="meta")
    timesteps = torch.empty(2, dtype=torch.int64, device="meta")
    text = torch.empty(2, 77, 768, device="meta")

    def to(self, device: torch.device) -> Given:
        return self


def test_a_forward_pass_of_stable_diffusion_is_803_gflop_an_image() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    assert sum(value.numel() for value in unet.parameters()) == 859_520_964
    counted = forward_flops(Call(unet), [Given(), Given()], torch.device("cpu"))
    assert counted / 4 == pytest.approx(0.803e12, rel=0.005)


@pytest.mark.parametrize(
    ("trained", "held", "expected"),
    [(0, 100, 200), (1, 100, 200), (50, 100, 200), (51, 100, 300), (100, 100, 300)],
)
def test_a_step_is_two_or_three_forward_passes(trained: int, held: int, expected: int) -> None:
    assert step_flops(100, trained, held) == expected


def test_counting_moves_nobodys_draws() -> None:
    class Dropping(nn.Module):
        def forward(self, batch: Given) -> Tensor:
            return nn.functional.dropout(torch.ones(8), 0.5)

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    forward_flops(Dropping(), [Given()], torch.device("cpu"))
    assert torch.equal(torch.rand(1), expected)


def test_a_cpu_has_a_peak() -> None:
    peak = matmul_peak(torch.device("cpu"), torch.float32)
    assert 1e8 < peak < 1e15, f"{peak:g} FLOPs a second"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_multiplies_faster_in_half_precision() -> None:
    device = torch.device("cuda")
    assert matmul_peak(device, torch.bfloat16) > matmul_peak(device, torch.float32)
