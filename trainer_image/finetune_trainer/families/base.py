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
    pooled: Tensor | None = None
    """float32 [B, width of the pooled text], where the family has one"""

    def to(self, device: torch.device) -> Cond:
        return Cond(self.embeddings.to(device), None if self.pooled is None else self.pooled.to(device))

    @staticmethod
    def stack(rows: Sequence[Cond]) -> Cond:
        """Rows of one sample each, put together in this order."""
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return Cond(torch.cat([row.embeddings for row in rows]), torch.cat(pooled) if pooled else None)


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
    text_encoders: tuple[str, ...]
    """The parts that read text, in the order of the tokenizers."""
    prediction_type: str
    """epsilon or v_prediction."""
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

    def tokenize(self, prompts: Sequence[str], chunks: int = 1) -> Tensor:
        """int64 [B, encoders, chunks * length]: windows of the model's length (77), each with its own begin and end,
        padded; what does not fit is cut."""

    def chunks_of(self, prompt: str) -> int:
        """Windows that `prompt` fills, at least 1."""

    def encode_text(self, token_ids: Tensor) -> Cond:
        """Conditioning of `tokenize`'s ids, the windows one after the other; differentiable when a text encoder is
        trained."""

    def word_known(self, word: str) -> bool:
        """Whether `word` is a single token of the vocabulary, or was added to it; capitals do not count."""

    def embed(self, text: str) -> dict[str, Tensor]:
        """The vocabulary's vectors for the tokens of `text`, begin and end left out: text encoder → float32
        [tokens, width], a copy.

        Raises:
            ConfigurationError: the vocabulary cannot spell it.
        """

    def vocabulary(self, part: str) -> Tensor:
        """The frozen table of text encoder `part`, float32 [words, width]."""

    def add_word(self, word: str, vectors: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
        """Makes `word` stand for new vectors, rows of their own beside the frozen table. Prompts that have it then
        expand to as many tokens.

        Args:
            vectors: first values for each text encoder, float32 [n, width], n the same for all.

        Returns:
            Text encoder → the new rows.

        Raises:
            ValueError: the word is known already.
            DataError: vectors are missing, or are of another width than the model's. Nothing was added.
        """

    def encode_image(self, pixels: Tensor) -> Moments:
        """Moments of pictures, float32 [B, 3, H, W] in -1 … 1."""

    def latents(self, moments: Moments, posterior_noise: Tensor) -> Tensor:
        """A sample of `moments`, scaled as the denoiser expects it; float32, shape of the mean."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`latents` at the noise levels of `timesteps`, int64 [B]."""

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Cond, sizes: Tensor) -> Tensor:
        """The denoiser's output, shape of `noisy`. `sizes`, float32 [B, 6]: original height and width, top and left of
        the crop, height and width of the target, in pixels; families that are not conditioned on them pass over it."""

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio at `timesteps`, float32 [B]; 0 at the last one with zero terminal SNR."""

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
