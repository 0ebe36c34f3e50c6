"""Batches: the samples of an optimizer step, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune_trainer.data.buckets import BucketOrder, Shape
from finetune_trainer.data.captions import Captions
from finetune_trainer.data.draw import Purpose, choose, draw
from finetune_trainer.data.latents import Latents, View
from finetune_trainer.data.report import DataReport
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
    captions: Captions
    weight: float = 1.0
    """1 for the user's pictures, λ for class pictures."""


@dataclass(frozen=True)
class Plan:
    """Which of the user's pictures come when, and in which shape."""

    order: BucketOrder
    shapes: Sequence[Shape]
    """Of each item of the latents; items of a micro-batch share theirs."""


@dataclass(frozen=True)
class _Row:
    """A sample."""

    view: View
    posterior_noise: Tensor
    noise: Tensor
    timestep: int
    text: tuple[Tensor, Cond | None]
    weight: float


class Samples:
    """Makes the micro-batches of any optimizer step, in any order, from nothing but the step's number."""

    def __init__(
        self,
        family: Family,
        instances: Stream,
        plan: Plan,
        classes: Stream | None,
        text: TextCache,
        seed: int,
        batch_size: int,
        accumulation: int,
        rank: int,
        processes: int,
        noise_offset: float,
        digests: Mapping[str, str],
        report: DataReport,
    ) -> None:
        """
        Args:
            instances: the user's pictures, in the order of `plan`.
            classes: class pictures, as many in each micro-batch as the user's; their shape is theirs.
            batch_size: samples of each stream in a micro-batch of one process.
            accumulation: micro-batches of an optimizer step.
            rank: which process of the group this is; it makes its own share of each step, and no other.
            processes: of the group.
            noise_offset: strength of a constant that is drawn for each channel of each sample and added to its noise
                (https://www.crosslabs.org/blog/diffusion-with-offset-noise).
            digests: SHA-256 of what of the user's is trained on, by what it is.
            report: on the same.
        """
        self._family, self._instances, self._plan, self._classes = family, instances, plan, classes
        self._text, self._seed, self._noise_offset = text, seed, noise_offset
        self._batch_size, self._accumulation = batch_size, accumulation
        self._rank, self._processes = rank, processes
        self.digests, self.report = digests, report

    @property
    def samples_per_epoch(self) -> int:
        """Pictures times crops, each as often as it is to be repeated."""
        return self.report.samples_per_epoch

    @property
    def pictures_per_step(self) -> int:
        """The user's pictures in an optimizer step, over all processes."""
        return self._batch_size * self._accumulation * self._processes

    def step(self, step: int) -> list[Batch]:
        """This process's micro-batches of optimizer step `step` (0 for the first), on the CPU."""
        return [self._micro_batch(step, micro) for micro in range(self._accumulation)]

    def _micro_batch(self, step: int, micro: int) -> Batch:
        # counted over steps, micro-batches and processes
        number = (step * self._accumulation + micro) * self._processes + self._rank
        first = (micro * self._processes + self._rank) * self._batch_size
        items = self._plan.order.batch(number)
        shape = self._plan.shapes[items[0]]
        rows = [self._row(self._instances, item, shape, step, first + i) for i, item in enumerate(items)]
        if self._classes is not None:
            count = len(self._classes.latents)
            for index in range(first, first + self._batch_size):
                item = choose(self._seed, Purpose.CLASS, step * self.pictures_per_step + index, count)
                rows.append(self._row(self._classes, item, shape, step, index))
        conds = [row.text[1] for row in rows]
        return Batch(
            moments=Moments.stack([row.view.moments for row in rows]),
            posterior_noise=torch.cat([row.posterior_noise for row in rows]),
            noise=torch.cat([row.noise for row in rows]),
            timesteps=torch.tensor([row.timestep for row in rows]),
            weights=sample_weights([row.weight for row in rows], self.pictures_per_step),
            token_ids=torch.cat([row.text[0] for row in rows]),
            cond=Cond.stack([cond for cond in conds if cond is not None]) if conds[0] is not None else None,
            sizes=torch.tensor([row.view.sizes for row in rows]),
            masks=_stacked([row.view for row in rows]),
            seed=draw(self._seed, Purpose.INSTANCE, step, first).module_seed,
        )

    def _row(self, stream: Stream, item: int, shape: Shape, step: int, index: int) -> _Row:
        drawn = draw(self._seed, stream.purpose, step, index)
        view = stream.latents.get(item, shape, drawn.flip)
        size = tuple(view.moments.mean.shape)
        noise = drawn.noise(size)
        if self._noise_offset:
            noise = noise + self._noise_offset * drawn.offset_noise(size[1])
        caption = stream.captions.of(stream.latents.picture_of(item), drawn)
        return _Row(
            view,
            drawn.posterior_noise(size),
            noise,
            drawn.timestep(self._family.timesteps),
            self._text.get(caption),
            stream.weight,
        )


def _stacked(views: Sequence[View]) -> Tensor | None:
    """Masks of all, white where a sample has none; None where no sample has one."""
    given = [view.mask for view in views if view.mask is not None]
    if not given:
        return None
    return torch.cat([torch.ones_like(given[0]) if view.mask is None else view.mask for view in views])
