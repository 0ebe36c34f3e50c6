"""Batches: the samples of an optimizer step, cut into micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune_trainer.data.draw import Purpose, choose, draw
from finetune_trainer.data.latents import Latents
from finetune_trainer.data.text import TextCache
from finetune_trainer.families.base import Cond, Family, Moments
from finetune_trainer.training.loss import sample_weights


@dataclass(frozen=True)
class Batch:
    """B samples of one micro-batch. All that is random is in it; whoever executes it draws nothing."""

    moments: Moments
    posterior_noise: Tensor
    """float32, shape of the moments"""
    noise: Tensor
    """as posterior_noise"""
    timesteps: Tensor
    """int64 [B]"""
    weights: Tensor
    """float32 [B]; over all micro-batches and processes of the step they add up to 1 + λ"""
    token_ids: Tensor
    """int64 [B, encoders, tokens]"""
    cond: Cond | None
    """The text, encoded; None when the text encoder is trained and token_ids must be encoded in the step."""
    sizes: Tensor
    """float32 [B, 6]: original height and width, top and left of the crop, height and width of the target, in pixels"""
    masks: Tensor | None
    """float32 [B, 1, height, width] of the latents, 0 … 1: how much each place counts; None where all do"""
    seed: int
    """For what modules draw themselves, such as dropout."""

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.moments.to(device),
            self.posterior_noise.to(device),
            self.noise.to(device),
            self.timesteps.to(device),
            self.weights.to(device),
            self.token_ids.to(device),
            None if self.cond is None else self.cond.to(device),
            self.sizes.to(device),
            None if self.masks is None else self.masks.to(device),
            self.seed,
        )


@dataclass(frozen=True)
class Stream:
    """One kind of samples: what they are made of, what they are called, and how much they count."""

    purpose: Purpose
    latents: Latents
    prompt: str
    weight: float
    """1 for the user's pictures, λ for class pictures."""


class Samples:
    """Makes the micro-batches of any optimizer step, in any order, from nothing but the step's number."""

    def __init__(
        self,
        family: Family,
        streams: tuple[Stream, ...],
        text: TextCache | None,
        seed: int,
        batch_size: int,
        accumulation: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """
        Args:
            text: encodes captions once; None when the text encoder is trained.
            batch_size: samples of each stream in a micro-batch of one process.
            accumulation: micro-batches of an optimizer step.
            rank: which process of the group this is; it makes its own share of each step, and no other.
            processes: of the group.
        """
        self._family, self._streams, self._text = family, streams, text
        self._seed, self._batch_size, self._accumulation = seed, batch_size, accumulation
        self._rank, self._processes = rank, processes
        self._token_ids = {stream.prompt: family.tokenize([stream.prompt]) for stream in streams}

    @property
    def pictures_per_step(self) -> int:
        """The user's pictures in an optimizer step, over all processes."""
        return self._batch_size * self._accumulation * self._processes

    def step(self, step: int) -> list[Batch]:
        """This process's micro-batches of optimizer step `step` (0 for the first), on the CPU."""
        return [self._micro_batch(step, micro) for micro in range(self._accumulation)]

    def _micro_batch(self, step: int, micro: int) -> Batch:
        first = (micro * self._processes + self._rank) * self._batch_size
        rows = [self._row(stream, step, first + index) for stream in self._streams for index in range(self._batch_size)]
        moments, posterior_noise, noise, timesteps = zip(*rows, strict=True)
        order = [stream for stream in self._streams for _ in range(self._batch_size)]
        weights = sample_weights([stream.weight for stream in order], self.pictures_per_step)
        return Batch(
            Moments.stack(moments),
            torch.cat(posterior_noise),
            torch.cat(noise),
            torch.tensor(timesteps),
            weights,
            torch.cat([self._token_ids[stream.prompt] for stream in order]),
            None if self._text is None else Cond.stack([self._text.get(stream.prompt) for stream in order]),
            torch.tensor([self._sizes(one.mean) for one in moments]),
            None,
            draw(self._seed, Purpose.INSTANCE, step, first).module_seed,
        )

    def _sizes(self, latent: Tensor) -> list[float]:
        height, width = (float(side * self._family.pixels_per_latent) for side in latent.shape[-2:])
        return [height, width, 0.0, 0.0, height, width]

    def _row(self, stream: Stream, step: int, index: int) -> tuple[Moments, Tensor, Tensor, int]:
        item = choose(self._seed, stream.purpose, step * self.pictures_per_step + index, len(stream.latents))
        drawn = draw(self._seed, stream.purpose, step, index)
        moments = stream.latents.get(item, drawn.flip)
        shape = tuple(moments.mean.shape)
        return moments, drawn.posterior_noise(shape), drawn.noise(shape), drawn.timestep(self._family.timesteps)
