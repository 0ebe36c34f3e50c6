"""Rounding by chance: right on average to the last bit, the same wherever it is repeated, and nobody else's draws
change."""

from __future__ import annotations

import math

import pytest
import torch
from finetune_trainer.engines.adamw_8bit import AdamW8bit
from finetune_trainer.engines.clipping import clip
from finetune_trainer.engines.rounding import LOW_BITS, draws, rounded_by_chance
from torch import Tensor, nn

ALL = torch.arange(LOW_BITS, dtype=torch.int32)


def step(number: int) -> Tensor:
    return torch.tensor(float(number))


@pytest.mark.parametrize(
    "value", [1.0, -1.0, 1 + 2**-9, -1.2345, 0.1, 255.9999, math.pi * 1e-6, -3e-39, 1e-45, 3e38, 0.0]
)
def test_over_all_draws_the_mean_is_the_value(value: float) -> None:
    values = torch.full((LOW_BITS,), value)
    rounded = rounded_by_chance(values, ALL).double()
    assert rounded.mean().item() == values[0].double().item()
    assert rounded.unique().numel() <= 2, "its two neighbours, or itself"


def test_what_bf16_has_stays_whatever_is_drawn() -> None:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for low in (0, 1, LOW_BITS // 2, LOW_BITS - 1):
        rounded = rounded_by_chance(values.float(), torch.full((LOW_BITS,), low, dtype=torch.int32))
        same = rounded.view(torch.int16) == values.view(torch.int16)
        assert (same | (values.isnan() & rounded.isnan())).all(), "infinity and NaN too, and the sign of zero"


def test_a_nan_of_any_bits_stays_one() -> None:
    # the last is a GPU's
    bits = torch.tensor([0x7F800001, 0x7FC00000, -1, 0x7FFFFFFF], dtype=torch.int32)
    assert rounded_by_chance(bits.view(torch.float32), torch.full((4,), LOW_BITS - 1, dtype=torch.int32)).isnan().all()


def hashed(number: int) -> int:
    """The hash in numbers without a sign, as its author writes it."""
    number %= 2**32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        number = (number ^ number >> shift) * factor % 2**32
    return number ^ number >> 16


def test_draws_are_a_function_of_the_step_and_the_stream() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    found = draws(1000, step(5), 7)
    assert torch.equal(torch.rand(2), expected), "no generator was asked"
    assert found.dtype == torch.int32
    assert torch.equal(draws(1000, step(5), 7), found)
    assert torch.equal(draws(10, torch.tensor(5), 7), found[:10]), "whatever the dtype of the counter"
    key = hashed(hashed(5) + 7)
    assert found.tolist() == [hashed(number ^ key) >> 16 for number in range(1000)]


def test_draws_are_spread_evenly_and_know_nothing_of_each_other() -> None:
    """Over a tensor, over the steps of one number, and between neighbours, steps and tensors."""
    count = 2**16
    one = draws(count, step(1), 0)
    others = [draws(count, step(2), 0), draws(count, step(1), 1), one.roll(1), one.roll(8)]
    over_steps = torch.stack([draws(2, step(number), 4) for number in range(4096)])
    for values in (one, *others, *over_steps.T):
        assert values.min() >= 0
        assert values.max() < LOW_BITS
        seen = torch.bincount(values // (LOW_BITS // 64), minlength=64).double()
        expected = values.numel() / 64
        # chi-squared with 63 degrees of freedom: above 117 in one of 30,000
        assert ((seen - expected).square() / expected).sum() < 117
    related = torch.corrcoef(torch.stack([one, *others]).double()) - torch.eye(5)
    assert related.abs().max() < 5 / math.sqrt(count)
    assert torch.corrcoef(over_steps.T.double())[0, 1].abs() < 5 / math.sqrt(4096)


def settled(rate: float, steps: int, weights: nn.Parameter, skipped: bool = False) -> Tensor:
    """`weights` after so many updates of `rate` downwards each."""
    optimizer = AdamW8bit([{"params": [weights]}], lr=rate, betas=(0.9, 0.999), eps=1e-12, weight_decay=0.0)
    optimizer.found_inf = torch.tensor(float(skipped))
    for _ in range(steps):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    return weights.detach()


def test_updates_far_smaller_than_the_distance_to_the_next_number_add_up() -> None:
    """A step of 1e-4 of the weight: rounded to the nearest, all 50 of them are lost."""
    exact = settled(1e-4, 50, nn.Parameter(torch.ones(100, 100)))
    ours = settled(1e-4, 50, nn.Parameter(torch.ones(100, 100, dtype=torch.bfloat16))).float()
    nearest = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(50):
        nearest = (nearest.float() - 1e-4).bfloat16()
    assert nearest.item() == 1.0
    assert exact.mean().item() == pytest.approx(0.995, abs=1e-5)
    # each number is off by about the distance to its neighbour, 2**-8, and ten thousand of them by a hundredth of it
    assert ours.mean().item() == pytest.approx(exact.mean().item(), abs=2e-4)
    assert ours.unique().numel() > 2


def test_a_skipped_step_changes_nothing() -> None:
    begun = torch.linspace(-1, 1, 5000).bfloat16()
    assert torch.equal(settled(0.1, 3, nn.Parameter(begun.clone()), skipped=True), begun)


def with_gradients(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for shape in ((300, 40), (7,), (3, 4, 5)):
        parameter = nn.Parameter(torch.zeros(shape, dtype=dtype))
        parameter.grad = torch.randn(shape, generator=generator).to(dtype)
        found.append(parameter)
    return found


def test_clipping_is_torchs_to_the_bit() -> None:
    for longest in (1.0, 1000.0):
        ours, theirs = with_gradients(torch.float32), with_gradients(torch.float32)
        assert torch.equal(clip(ours, longest), nn.utils.clip_grad_norm_(theirs, longest))
        assert all(torch.equal(one.grad, other.grad) for one, other in zip(ours, theirs, strict=True))


def test_the_length_of_gradients_in_bf16_is_float32() -> None:
    """torch's would be rounded to bf16, tensor by tensor."""
    ours, theirs = with_gradients(torch.bfloat16), with_gradients(torch.bfloat16)
    exact = math.sqrt(sum(one.grad.double().square().sum().item() for one in ours if one.grad is not None))
    length = clip(ours, 1.0)
    assert length.dtype == torch.float32
    assert length.item() == pytest.approx(exact, rel=1e-5)
    assert nn.utils.clip_grad_norm_(theirs, 1.0).item() != pytest.approx(exact, rel=1e-4)
    shortened = math.sqrt(sum(one.grad.double().square().sum().item() for one in ours if one.grad is not None))
    assert shortened == pytest.approx(1, rel=1e-3)
