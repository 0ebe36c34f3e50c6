"""The VAE's view of each picture, computed once and kept in memory and, where there is a cache folder, on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer.data.buckets import Shape
from finetune_trainer.data.disk_cache import DiskCache
from finetune_trainer.data.draw import crop_offsets
from finetune_trainer.data.framing import CENTRE, Frame, frame
from finetune_trainer.data.masks import Masks
from finetune_trainer.data.pictures import PictureSet, to_pixels
from finetune_trainer.families.base import Family, Moments

Key = tuple[int, Shape, bool]
"""Which item, in a batch of which shape, mirrored or not."""


@dataclass(frozen=True)
class Crops:
    """Which parts of a picture are shown."""

    count: int = 1
    """Fixed crops of each picture."""
    random: bool = False
    """Crops at drawn places; otherwise the middle."""
    flip: bool = False
    """Mirrored ones too."""
    seed: int = 0
    """Of the crops' places."""

    def offsets(self, picture: int, crop: int) -> tuple[float, float]:
        return crop_offsets(self.seed, picture, crop) if self.random else CENTRE


@dataclass(frozen=True)
class View:
    """One crop of one picture, as a sample of a batch."""

    moments: Moments
    """One row, on the CPU."""
    sizes: tuple[float, ...]
    """Six, as `Frame.sizes` has them."""
    mask: Tensor | None
    """float32 [1, 1, height, width] of the latents, 0 … 1; None without masks."""


class Latents:
    """Views by (picture, crop), shape, and mirrored or not. The mean *and* the variance are kept, so that a cached
    picture is sampled exactly as an uncached one."""

    def __init__(
        self, family: Family, pictures: PictureSet, crops: Crops, cache: DiskCache | None, masks: Masks | None = None
    ) -> None:
        self._family, self._pictures, self._crops, self._masks = family, pictures, crops, masks
        self._cache = cache
        self._kept: dict[Key, View] = {}

    def __len__(self) -> int:
        """Pictures times crops."""
        return len(self._pictures) * self._crops.count

    @property
    def ways(self) -> int:
        """In how many ways an item of one shape is shown: mirrored too, or not."""
        return 2 if self._crops.flip else 1

    def picture_of(self, item: int) -> int:
        """Which picture item 0 … len - 1 is a crop of."""
        return item // self._crops.count

    def frame(self, item: int, shape: Shape, flip: bool = False) -> Frame:
        """What is shown of item 0 … len - 1 in a batch of `shape`."""
        index, crop = divmod(item, self._crops.count)
        picture = self._pictures.pictures[index]
        return frame(picture.height, picture.width, shape, self._crops.offsets(index, crop), flip)

    def mask(self, item: int, shape: Shape, flip: bool = False) -> Tensor | None:
        """As View's."""
        if self._masks is None:
            return None
        height, width = (side // self._family.pixels_per_latent for side in shape)
        return self._masks.get(self.picture_of(item), self.frame(item, shape, flip), height, width)

    def key(self, item: int, shape: Shape, flip: bool) -> Key:
        """What `get` of these gives is the same for the same key: `flip` counts only where crops are flipped at all."""
        return item, shape, flip and self._crops.flip

    def get(self, item: int, shape: Shape, flip: bool) -> View:
        """Item 0 … len - 1 for a batch of `shape`."""
        key = self.key(item, shape, flip)
        if key not in self._kept:
            self.keep(key, self.find(key))
        return self._kept[key]

    def find(self, key: Key) -> Moments | Tensor:
        """The moments, where the cache has them; else the pixels that they are to be made of. Needs no model.

        Raises:
            DataError: the picture cannot be read any more.
        """
        if self._cache is not None:
            found = self._cache.read(self._name(key), _read)
            if found is not None:
                return found
        return to_pixels(self._pictures.pictures[self.picture_of(key[0])].load(), self.frame(*key))

    def keep(self, key: Key, found: Moments | Tensor) -> None:
        """From now on `get` has what `find` found."""
        if isinstance(found, Tensor):
            # one at a time: the result depends on this picture alone, not on which others share a batch
            moments = self._family.encode_image(found)
            found = Moments(moments.mean.cpu().contiguous(), moments.logvar.cpu().contiguous())
            if self._cache is not None:
                tensors = {"mean": found.mean, "logvar": found.logvar}
                self._cache.write(self._name(key), lambda file: save_file(tensors, file))
        picture = self._pictures.pictures[self.picture_of(key[0])]
        self._kept[key] = View(found, self.frame(*key).sizes(picture.height, picture.width), self.mask(*key))

    def _name(self, key: Key) -> str:
        picture = self._pictures.pictures[self.picture_of(key[0])]
        text = f"3 {arithmetic(self._family)} {self._family.digests['vae']} {picture.digest} {self.frame(*key)}"
        return f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"


def arithmetic(family: Family) -> str:
    """What else than its inputs the bits of a network's output depend on, as far as a cache must know."""
    return f"{family.device.type} torch-{torch.__version__}"


def _read(path: Path) -> Moments:
    tensors = load_file(path)
    return Moments(tensors["mean"], tensors["logvar"])
