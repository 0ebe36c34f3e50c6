"""Aspect-ratio buckets: which shapes there are, which picture is trained in which, and in which order they come.

A micro-batch is of one bucket and always whole. Which micro-batch is made of what is a function of its number alone,
counted over steps, accumulation and processes, so that neither an interruption nor another number of processes
changes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune_api.dataset import BucketsSpec

from finetune_trainer.data.draw import Purpose, bucket_order, choose
from finetune_trainer.errors import ConfigurationError

Shape = tuple[int, int]
"""Height and width in pixels."""


def bucket_shapes(spec: BucketsSpec, resolution: int) -> tuple[Shape, ...]:
    """All shapes of pictures, in order of their heights: sides are multiples of `step`, neither below
    `minResolution` nor above `maxResolution`, and no shape has more pixels than a square of `resolution`.

    For each height it is the widest that fits, and the same shapes lying down: sd-scripts' make_bucket_resolutions.

    Raises:
        ConfigurationError: no shape fits.
    """
    area = resolution**2
    square = resolution // spec.step * spec.step
    found = {(square, square)} if spec.min_resolution <= square <= spec.max_resolution else set()
    first = math.ceil(spec.min_resolution / spec.step) * spec.step
    for side in range(first, spec.max_resolution + 1, spec.step):
        other = min(spec.max_resolution, area // side) // spec.step * spec.step
        if other >= spec.min_resolution:
            found |= {(side, other), (other, side)}
    if not found:
        raise ConfigurationError(
            f"dataset.buckets: no picture with sides from {spec.min_resolution} to {spec.max_resolution} in steps of "
            f"{spec.step} is as small as {resolution} × {resolution} pixels; lower minResolution or raise resolution"
        )
    return tuple(sorted(found))


def nearest(shapes: Sequence[Shape], height: int, width: int) -> Shape:
    """The shape that least is cut from: nearest in the logarithm of the aspect, so that portrait and landscape are
    treated alike; of equal ones the largest."""
    aspect = math.log(height / width)
    return min(shapes, key=lambda shape: (abs(math.log(shape[0] / shape[1]) - aspect), -shape[0] * shape[1]))


class BucketOrder:
    """Which items make up micro-batch number i, counted from the start of the training."""

    def __init__(self, seed: int, buckets: Sequence[Sequence[int]], batch_size: int) -> None:
        """
        Args:
            buckets: items of each bucket, at least one of one bucket. With a single bucket the order is that of
                `choose` over its items.
            batch_size: items of a micro-batch.
        """
        self._seed, self._batch_size = seed, batch_size
        self._buckets = [tuple(items) for items in buckets if items]
        self._kept: tuple[int, list[tuple[int, int]]] = (-1, [])

    @property
    def items(self) -> set[int]:
        """All that are ever shown."""
        return {item for items in self._buckets for item in items}

    def batch(self, number: int) -> list[int]:
        """Items of a micro-batch, all of one bucket. Where a bucket ends in the middle of one, its next pass begins
        there: within any pass over all items each is seen as often as any other, up to one micro-batch."""
        epoch = self._epoch(number)
        bucket, nth = self._pass(epoch)[number - sum(self._begun(epoch))]
        items, first = self._buckets[bucket], nth * self._batch_size
        return [
            items[choose(self._seed, Purpose.INSTANCE, first + index, len(items))] for index in range(self._batch_size)
        ]

    def _pass(self, epoch: int) -> list[tuple[int, int]]:
        """Bucket of each micro-batch of a pass, and the how manieth of that bucket it is since the start."""
        if epoch != self._kept[0]:
            counts = self._begun(epoch)
            wanted = [after - before for before, after in zip(counts, self._begun(epoch + 1), strict=True)]
            found = []
            for bucket in bucket_order(self._seed, epoch, wanted):
                found.append((bucket, counts[bucket]))
                counts[bucket] += 1
            # a memo of a pure function: only the pass in use matters
            self._kept = (epoch, found)
        return self._kept[1]

    def _begun(self, epoch: int) -> list[int]:
        """Micro-batches that each bucket has yielded before the pass `epoch`."""
        return [epoch * len(items) // self._batch_size for items in self._buckets]

    def _epoch(self, number: int) -> int:
        """The pass in which micro-batch `number` falls."""
        low, high = 0, 1
        while sum(self._begun(high)) <= number:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sum(self._begun(middle)) <= number else (low, middle)
        return low
