"""The noise that a model was trained with: what is added at which level, and what the denoiser should have said."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from torch import Tensor

from finetune_trainer.errors import DataError

PREDICTION_TYPES = ("epsilon", "v_prediction")
WHERE = "baseModel: scheduler/scheduler_config.json"


class NoiseSchedule:
    """Variance-preserving noise as a scheduler of Diffusers describes it, whatever sampler that is."""

    def __init__(self, scheduler: SchedulerMixin, device: torch.device) -> None:
        """
        Raises:
            DataError: the model predicts something else, or cannot be trained with this schedule.
        """
        # the class is asked: a configuration may hold what another scheduler left in it
        if "beta_schedule" not in signature(type(scheduler)).parameters:
            raise DataError(
                f"{WHERE} is of a {type(scheduler).__name__}, which has no beta_schedule; models that were trained "
                "with flow matching or EDM noise cannot be fine-tuned: use another model"
            )
        self._ddpm = DDPMScheduler.from_config(scheduler.config)
        config = self._ddpm.config
        self.prediction_type = str(config.prediction_type)
        self.zero_terminal_snr = bool(config.rescale_betas_zero_snr)
        self.timesteps = int(config.num_train_timesteps)
        if self.prediction_type not in PREDICTION_TYPES:
            raise DataError(
                f"{WHERE} says prediction_type {self.prediction_type}; "
                f"these can be trained: {', '.join(PREDICTION_TYPES)}"
            )
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            # https://arxiv.org/abs/2305.08891, section 3.2: predicting the noise in pure noise is copying it
            raise DataError(
                f"{WHERE} says prediction_type epsilon and rescale_betas_zero_snr true: at the last timestep there is "
                "noise alone, and saying which noise tells nothing of the picture, so that nothing is learned there "
                "and samplers divide by zero; set prediction_type to v_prediction if the model was trained with it, "
                "else rescale_betas_zero_snr to false"
            )
        self._ddpm.alphas_cumprod = self._ddpm.alphas_cumprod.to(device)

    def add(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`latents` at the noise levels of `timesteps`, int64 [B]."""
        noisy: Tensor = self._ddpm.add_noise(latents, noise, timesteps)
        return noisy

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noise, or the velocity √ᾱ noise - √(1 - ᾱ) latents (https://arxiv.org/abs/2202.00512)."""
        if self.prediction_type == "epsilon":
            return noise
        velocity: Tensor = self._ddpm.get_velocity(latents, noise, timesteps)
        return velocity

    def snr(self, timesteps: Tensor) -> Tensor:
        """ᾱ / (1 - ᾱ), float32 [B]: never divides by zero, for some noise is there at every level."""
        signal = self._ddpm.alphas_cumprod[timesteps.to(self._ddpm.alphas_cumprod.device)]
        return signal / (1 - signal)

    def sampler(self) -> SchedulerMixin:
        """A new sampler for this schedule."""
        return drawing_scheduler(dict(self._ddpm.config))


def drawing_scheduler(config: Mapping[str, Any]) -> SchedulerMixin:
    """A sampler without noise of its own for the noise schedule in `config`.

    DPM-Solver++ needs the fewest steps; with zero terminal SNR its first step would divide by zero, and there
    DDIM with trailing timesteps is the right one (https://arxiv.org/abs/2305.08891).
    """
    if config.get("rescale_betas_zero_snr"):
        return DDIMScheduler.from_config(config, timestep_spacing="trailing", clip_sample=False)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", use_karras_sigmas=False)
