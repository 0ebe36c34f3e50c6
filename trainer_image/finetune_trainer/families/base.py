"""What the trainer needs to know of a kind of base model. One file in this folder for each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class Cond:
    """What the denoiser is conditioned on, one row for each sample. Families with more than text embeddings add
    fields; nobody outside the family looks inside."""

    embeddings: Tensor
    """float32 [B, tokens, width]"""

    def to(self, device: torch.device) -> Cond:
        return Cond(self.embeddings.to(device))

    @staticmethod
    def stack(rows: Sequence[Cond]) -> Cond:
        """Rows of one sample each, put together in this order."""
        return Cond(torch.cat([row.embeddings for row in rows]))


@dataclass(frozen=True)
class Moments:
    """The Gaussian that the VAE sees in a picture, as the VAE gives it (unscaled)."""

    mean: Tensor
    """float32 [B, channels, height, width] of the latents"""
    logvar: Tensor
    """as mean"""

    def to(self, device: torch.device) -> Moments:
        return Moments(self.mean.to(device), self.logvar.to(device))

    @staticmethod
    def stack(rows: Sequence[Moments]) -> Moments:
        """Rows of one sample each, put together in this order."""
        return Moments(torch.cat([row.mean for row in rows]), torch.cat([row.logvar for row in rows]))


class Family(Protocol):
    """A base model, loaded: all parts in float32, frozen, in evaluation mode."""

    name: str
    """For people and reports: stable-diffusion."""
    folder: Path
    device: torch.device
    parts: Mapping[str, nn.Module]
    """Networks by their folder's name in Diffusers' layout. Export keys start with these names."""
    denoiser: str
    """The part that predicts."""
    digests: Mapping[str, str]
    """SHA-256 of each folder of the model, tokenizer and scheduler included."""
    digest: str
    """SHA-256 over `digests`: the model's identity in cache keys."""
    resolution: int
    """Side in pixels that the model was made for."""
    pixels_per_latent: int
    latent_channels: int
    sampler: Mapping[str, object]
    """Name and configuration of the sampler that `draw` uses, and its arithmetic: part of cache keys."""
    timesteps: int
    """Noise levels; timesteps are 0 … timesteps - 1."""

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """int64 [B, tokens], padded and cut to the model's length."""

    def encode_text(self, token_ids: Tensor) -> Cond:
        """Conditioning of token ids [B, tokens]; differentiable when the text encoder is trained."""

    def encode_image(self, pixels: Tensor) -> Moments:
        """Moments of pictures, float32 [B, 3, H, W] in -1 … 1."""

    def latents(self, moments: Moments, posterior_noise: Tensor) -> Tensor:
        """A sample of `moments`, scaled as the denoiser expects it; float32, shape of the mean."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`latents` at the noise levels of `timesteps`, int64 [B]."""

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Cond) -> Tensor:
        """The denoiser's output, shape of `noisy`."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should have said, by the scheduler's prediction type."""

    def pipeline(self) -> DiffusionPipeline:
        """The model with its own scheduler, sharing the live parts: for export."""

    def draw(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        noise: Tensor,
        steps: int,
        guidance: float,
    ) -> list[Image.Image]:
        """One picture for each row of `noise` (float32 [B, channels, height, width] of the latents) by the sampler
        of `sampler`. All randomness is in the noise. Guidance 1 is none."""
