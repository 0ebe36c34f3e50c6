"""Batches: the samples of an optimizer step, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from finetune_trainer.data.buckets import BucketOrder, Shape
from finetune_trainer.data.captions import Captions
from finetune_trainer.data.draw import Purpose, choose, draw
from finetune_trainer.data.latents import Key, Latents, View
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.text import TextCache
from finetune_trainer.families.base import Cond, Family, Moments
from finetune_trainer.training.loss import sample_weights

T = TypeVar("T")

MOST_LOOKED_AT = 100_000
"""Samples of a training whose views are listed before it begins: some seconds' worth. What only later ones show is made
when they come."""


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
        """On `device`; what is there already is not copied. A host with pinned batches does not wait for the copies."""
        return mapped(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """In memory that a GPU can read by itself."""
        return mapped(self, Tensor.pin_memory)


@dataclass(frozen=True)
class Stream:
    """One kind of samples: what they are made of, what they are called, and how much they count."""

    purpose: Purpose
    latents: Latents
    captions: Captions
    weight: float = 1.0
    """1 for the user's pictures, λ for class pictures."""


@dataclass(frozen=True)
class PictureOrder:
    """Which of the user's pictures come when, and in which shape."""

    buckets: BucketOrder
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
        order: PictureOrder,
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
            instances: the user's pictures, in that `order`.
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
        self._family, self._order = family, order
        self._streams = (instances,) if classes is None else (instances, classes)
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

    def views(self, steps: int) -> list[tuple[Latents, Key]]:
        """What this process shows in the first `steps` steps, each once, in the order in which it is first shown; of
        long trainings what their first MOST_LOOKED_AT samples show, and of all trainings nothing that is not shown."""
        found: dict[tuple[int, Key], None] = {}
        possible = self._possible_views()
        a_step = self.pictures_per_step // self._processes * len(self._streams)
        for step in range(min(steps, -(-MOST_LOOKED_AT // a_step))):
            if len(found) == possible:
                break
            for micro in range(self._accumulation):
                shape, chosen = self._chosen(step, micro)
                for which, item, index in chosen:
                    stream = self._streams[which]
                    flip = stream.latents.ways == 2 and draw(self._seed, stream.purpose, step, index).flip
                    found[which, stream.latents.key(item, shape, flip)] = None
        return [(self._streams[which].latents, key) for which, key in found]

    def step(self, step: int) -> list[Batch]:
        """This process's micro-batches of optimizer step `step` (0 for the first), on the CPU."""
        return [self._micro_batch(step, micro) for micro in range(self._accumulation)]

    def _possible_views(self) -> int:
        items = self._order.buckets.items
        shapes = {self._order.shapes[item] for item in items}
        instances, *classes = (stream.latents for stream in self._streams)
        return len(items) * instances.ways + sum(len(each) * each.ways * len(shapes) for each in classes)

    def _chosen(self, step: int, micro: int) -> tuple[Shape, list[tuple[int, int, int]]]:
        """The shape of a micro-batch, and of each of its samples the stream, the item, and its index in the step."""
        # counted over steps, micro-batches and processes
        number = (step * self._accumulation + micro) * self._processes + self._rank
        first = (micro * self._processes + self._rank) * self._batch_size
        items = self._order.buckets.batch(number)
        chosen = [(0, item, first + i) for i, item in enumerate(items)]
        for which, stream in enumerate(self._streams[1:], 1):
            count = len(stream.latents)
            for index in range(first, first + self._batch_size):
                item = choose(self._seed, stream.purpose, step * self.pictures_per_step + index, count)
                chosen.append((which, item, index))
        return self._order.shapes[items[0]], chosen

    def _micro_batch(self, step: int, micro: int) -> Batch:
        shape, chosen = self._chosen(step, micro)
        rows = [self._row(self._streams[which], item, shape, step, index) for which, item, index in chosen]
        first = chosen[0][2]
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


def mapped(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """`value`, a dataclass, with `change` made to all tensors in it, those included that a family adds to its own."""
    if isinstance(value, Tensor):
        return change(value)  # type: ignore[return-value]  # a tensor for a tensor
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: mapped(getattr(value, field.name), change) for field in fields(value)})


def _stacked(views: Sequence[View]) -> Tensor | None:
    """Masks of all, white where a sample has none; None where no sample has one."""
    given = [view.mask for view in views if view.mask is not None]
    if not given:
        return None
    return torch.cat([torch.ones_like(given[0]) if view.mask is None else view.mask for view in views])
