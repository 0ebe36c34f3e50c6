"""Losses and weights beside an independent implementation in numpy."""

import math

import numpy as np
import pytest
import torch
from finetune_api.training import LossSpec
from finetune_trainer.training.loss import sample_losses, timestep_weights

INFINITY = math.inf


def by_hand(snr: float, weighting: str, gamma: float, velocity: bool) -> float:
    """As the papers write it, for a finite SNR above zero."""
    if weighting == "MinSnr":
        return min(snr, gamma) / (snr + 1 if velocity else snr)
    return 1 / (min(snr, 1000) + 1) if velocity else 1 / min(snr, 1000) ** 0.5


@pytest.mark.parametrize("velocity", [False, True])
@pytest.mark.parametrize(("weighting", "gamma"), [("MinSnr", 5.0), ("MinSnr", 1.5), ("Debiased", 5.0)])
def test_weights_of_stable_diffusions_own_schedule(weighting: str, gamma: float, velocity: bool) -> None:
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    snr = alphas / (1 - alphas)
    spec = LossSpec.model_validate({"weighting": weighting} | ({"minSnrGamma": gamma} if weighting == "MinSnr" else {}))
    prediction = "v_prediction" if velocity else "epsilon"
    weights = timestep_weights(torch.tensor(snr, dtype=torch.float32), spec, prediction)
    np.testing.assert_allclose(weights, [by_hand(value, weighting, gamma, velocity) for value in snr], rtol=1e-5)


# weighting, prediction, weight at SNR 0, at SNR infinite
EDGES = [
    ("None", "epsilon", 1.0, 1.0),
    ("MinSnr", "epsilon", 1.0, 0.0),
    ("MinSnr", "v_prediction", 0.0, 0.0),
    ("Debiased", "epsilon", 1000**0.5, 1000**-0.5),
    ("Debiased", "v_prediction", 1 / 1.001, 1 / 1001),
]


@pytest.mark.parametrize(("weighting", "prediction", "at_zero", "at_infinity"), EDGES)
def test_weights_at_the_ends_are_finite(weighting: str, prediction: str, at_zero: float, at_infinity: float) -> None:
    """Zero terminal SNR ends at 0, and a first timestep without noise has no bound."""
    spec = LossSpec.model_validate({"weighting": weighting})
    weights = timestep_weights(torch.tensor([0.0, INFINITY]), spec, prediction)
    np.testing.assert_allclose(weights, [at_zero, at_infinity], rtol=1e-6)


def test_gamma_is_five_unless_set() -> None:
    snr = torch.tensor([0.5, 4.0, 6.0, 50.0])
    unset, five = LossSpec(weighting="MinSnr"), LossSpec.model_validate({"weighting": "MinSnr", "minSnrGamma": 5})
    assert torch.equal(timestep_weights(snr, unset, "epsilon"), timestep_weights(snr, five, "epsilon"))


def test_a_masked_loss_is_the_mean_over_what_the_mask_shows() -> None:
    numbers = np.random.default_rng(3)
    said, truth = numbers.normal(size=(2, 3, 4, 4, 5)).astype(np.float32)
    masks = np.zeros((3, 1, 4, 5), np.float32)
    masks[0, 0, :, :2] = 1
    masks[1] = numbers.random((1, 4, 5))
    losses = sample_losses(torch.tensor(said), torch.tensor(truth), torch.tensor(masks))
    errors = (said - truth) ** 2
    assert losses[0].item() == pytest.approx(errors[0, :, :, :2].mean(), rel=1e-5)
    assert losses[1].item() == pytest.approx((errors[1] * masks[1]).sum() / (4 * masks[1].sum()), rel=1e-5)
    assert losses[2].item() == 0, "nothing shown, nothing learned, and no 0/0"


@pytest.mark.parametrize("scale", [1e-6, 0.01, 0.3])
def test_how_bright_a_mask_is_does_not_change_the_learning_rate(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    said, truth = torch.randn(2, 2, 4, 3, 3, generator=generator)
    masks = torch.rand(2, 1, 3, 3, generator=generator)
    whole, faint = sample_losses(said, truth, masks), sample_losses(said, truth, masks * scale)
    torch.testing.assert_close(faint, whole, rtol=1e-4, atol=0)


def test_a_white_mask_changes_nothing_and_a_black_one_has_no_gradient() -> None:
    said = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    truth = torch.zeros(2, 4, 3, 3)
    torch.testing.assert_close(sample_losses(said, truth, torch.ones(2, 1, 3, 3)), sample_losses(said, truth))
    sample_losses(said, truth, torch.zeros(2, 1, 3, 3)).sum().backward()
    assert said.grad is not None
    assert torch.equal(said.grad, torch.zeros_like(said))
