"""The loss, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from finetune_api.training import LossSpec
from torch import Tensor

MIN_SNR_GAMMA = 5.0
"""What the paper of min-SNR recommends."""
SNR_BOUNDS = (1e-3, 1e3)
"""Between these, 1/sqrt(SNR) is used as it is; 1000 is sd-scripts' bound, the lower one keeps a terminal SNR of zero
from an infinite weight. Stable Diffusion's own schedule ends at 0.0047."""


def sample_losses(prediction: Tensor, target: Tensor, masks: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, float32 [B], whatever the precision of the prediction.

    With `masks` (float32 [B, 1, height, width] in 0 … 1, of the latents) it is the mean weighted by the mask,
    sum(m · e²) / (channels · sum(m)): a small subject counts as much as a large one, and a mask scaled by a constant
    changes nothing, so that masks do not turn the learning rate. A sample whose mask is black loses 0.
    """
    errors = (prediction.float() - target.float()).square()
    if masks is None:
        return errors.flatten(1).mean(1)
    inside = masks.flatten(1).mean(1)
    weighted = (errors * masks).flatten(1).mean(1)
    # not x / max(x, tiny): that would turn a mask that is nearly black into a smaller learning rate
    return torch.where(inside > 0, weighted / torch.where(inside > 0, inside, 1.0), 0.0)


def timestep_weights(snr: Tensor, spec: LossSpec, prediction_type: str) -> Tensor:
    """Weight of each sample by the signal-to-noise ratio of its own timestep, float32 [B].

    MinSnr: min(SNR, γ) / SNR for a model that predicts the noise, min(SNR, γ) / (SNR + 1) for the velocity
    (https://arxiv.org/abs/2303.09556, γ = 5 unless set). Debiased: 1 / sqrt(SNR) and 1 / (SNR + 1)
    (https://arxiv.org/abs/2310.08442, for the velocity as sd-scripts' apply_debiased_estimation has it).

    Args:
        snr: float32 [B], 0 … infinity.
        prediction_type: "epsilon" or "v_prediction".
    """
    velocity = prediction_type == "v_prediction"
    if spec.weighting == "MinSnr":
        gamma = MIN_SNR_GAMMA if spec.min_snr_gamma is None else spec.min_snr_gamma
        # γ / max(SNR, γ) is min(SNR, γ) / SNR, and defined where SNR is 0
        return snr.clamp(max=gamma) / (snr + 1) if velocity else gamma / snr.clamp(min=gamma)
    if spec.weighting == "Debiased":
        bounded = snr.clamp(*SNR_BOUNDS)
        return 1 / (bounded + 1) if velocity else bounded.rsqrt()
    return torch.ones_like(snr)


def sample_weights(stream_weights: Sequence[float], samples_per_stream: int) -> Tensor:
    """Fixed weights of samples, float32 [B]: the weighted losses of a whole step add up to the mean over the user's
    pictures plus λ times the mean over class pictures, however the step is cut into micro-batches and processes.

    Args:
        stream_weights: for each sample of the micro-batch 1 (the user's) or λ (class).
        samples_per_stream: samples of each kind in the whole optimizer step, over all processes.
    """
    return torch.tensor(stream_weights, dtype=torch.float32) / samples_per_stream
