"""Everything random in a training: a pure function of (seed, purpose, optimizer step, index of the sample).

Philox is a counter-based generator: its output depends on key and counter alone. The key holds seed and purpose, the
counter holds the stream, the sample and the step. So what a sample gets is the same for any number of processes, any
accumulation, with or without caches, on any device, and after any interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor


class Purpose(IntEnum):
    """What is drawn for. Numbers are part of every result: never renumber."""

    INSTANCE = 1
    """Training samples from the user's pictures."""
    CLASS = 2
    """Training samples from class pictures."""
    CLASS_PICTURE = 3
    """The noise a class picture is drawn from; the index is the picture's."""
    INITIALISATION = 4
    """First values of new weights; the index is the tensor's."""
    VALIDATION = 5
    """Which pictures are held out, and the noise of the loss on them; the index is the picture's."""


class _Stream(IntEnum):
    """Independent draws of one sample: using one never shifts another."""

    FLIP = 1
    TIMESTEP = 2
    NOISE = 3
    POSTERIOR_NOISE = 4
    ORDER = 5
    CROP = 6
    NOISE_OFFSET = 7
    TEMPLATE = 8
    TAGS = 9
    NO_CAPTION = 10
    BUCKETS = 11
    MODULES = 12


@dataclass(frozen=True)
class Draw:
    """What one sample gets. Methods are pure: each call gives the same values again."""

    seed: int
    purpose: Purpose
    step: int
    index: int

    @property
    def flip(self) -> bool:
        """A fair coin."""
        return bool(self._generator(_Stream.FLIP).random() < 0.5)

    def timestep(self, count: int) -> int:
        """A noise level, uniform in 0 … count - 1."""
        return int(self._generator(_Stream.TIMESTEP).integers(count))

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 of `shape` for the forward diffusion."""
        return self._normal(_Stream.NOISE, shape)

    def posterior_noise(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 of `shape` for sampling the VAE's posterior."""
        return self._normal(_Stream.POSTERIOR_NOISE, shape)

    def offset_noise(self, channels: int) -> Tensor:
        """Standard normal float32 [1, channels, 1, 1]: one constant for each channel."""
        return self._normal(_Stream.NOISE_OFFSET, (1, channels, 1, 1))

    def template(self, count: int) -> int:
        """Which of `count` captions, 0 … count - 1."""
        return int(self._generator(_Stream.TEMPLATE).integers(count))

    def tag_order(self, count: int) -> list[int]:
        """A permutation of 0 … count - 1."""
        order: list[int] = self._generator(_Stream.TAGS).permutation(count).tolist()
        return order

    def drops_caption(self, share: float) -> bool:
        """True for `share` of all samples."""
        return bool(self._generator(_Stream.NO_CAPTION).random() < share)

    @property
    def module_seed(self) -> int:
        """Seed for what networks draw themselves (dropout), 0 … 2⁶³ - 1."""
        return int(self._generator(_Stream.MODULES).integers(2**63))

    def _normal(self, stream: _Stream, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(self._generator(stream).standard_normal(shape, dtype=np.float32))

    def _generator(self, stream: _Stream) -> Generator:
        return _generator(self.seed, self.purpose, stream, self.index, self.step)


def draw(seed: int, purpose: Purpose, optimizer_step: int, global_sample_index: int) -> Draw:
    """The randomness of one sample.

    Args:
        seed: training.seed, 0 or more.
        purpose: what the sample is for.
        optimizer_step: 0 for the first.
        global_sample_index: 0 … global batch - 1, counted over all processes and micro-batches.
    """
    return Draw(seed, purpose, optimizer_step, global_sample_index)


def choose(seed: int, purpose: Purpose, ordinal: int, count: int) -> int:
    """Which of `count` things the sample number `ordinal` (since the start of the training) is made of.

    Each pass goes through all things once, in an order of its own, so that after any number of samples no picture
    was seen more than once more often than another.
    """
    return _order(seed, purpose, ordinal // count, count)[ordinal % count]


def bucket_order(seed: int, epoch: int, batches: Sequence[int]) -> list[int]:
    """Which bucket each micro-batch of a pass comes from, when bucket i is to yield `batches[i]` of them."""
    which = np.repeat(np.arange(len(batches)), batches)
    order: list[int] = _generator(seed, Purpose.INSTANCE, _Stream.BUCKETS, 0, epoch).permutation(which).tolist()
    return order


def crop_offsets(seed: int, picture: int, crop: int) -> tuple[float, float]:
    """Position of a fixed crop: two shares in [0, 1) of the room left to it, horizontal and vertical."""
    x, y = _generator(seed, Purpose.INSTANCE, _Stream.CROP, picture, crop).random(2)
    return float(x), float(y)


_last_order: dict[tuple[int, Purpose, int, int], list[int]] = {}


def _order(seed: int, purpose: Purpose, epoch: int, count: int) -> list[int]:
    key = (seed, purpose, epoch, count)
    order = _last_order.get(key)
    if order is None:
        if len(_last_order) >= 8:  # a memo of a pure function: only the passes in use matter
            _last_order.clear()
        order = _generator(seed, purpose, _Stream.ORDER, count, epoch).permutation(count).tolist()
        _last_order[key] = order
    return order


def _generator(seed: int, purpose: Purpose, stream: _Stream, index: int, step: int) -> Generator:
    # Philox counts up in the first word, so the others are free to name the sample
    return Generator(
        Philox(key=np.array([seed, purpose], np.uint64), counter=np.array([0, stream, index, step], np.uint64))
    )
