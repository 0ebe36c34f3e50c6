"""The VAE's view of each picture, computed once and kept in memory and, where there is a cache folder, on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer.data.buckets import Shape
from finetune_trainer.data.draw import crop_offsets
from finetune_trainer.data.framing import CENTRE, Frame, frame
from finetune_trainer.data.masks import Masks
from finetune_trainer.data.pictures import Picture, PictureSet, to_pixels
from finetune_trainer.data.whole_files import write_whole
from finetune_trainer.families.base import Family, Moments


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
        self, family: Family, pictures: PictureSet, crops: Crops, folder: Path | None, masks: Masks | None = None
    ) -> None:
        self._family, self._pictures, self._crops, self._masks = family, pictures, crops, masks
        self._folder = folder
        self._kept: dict[tuple[int, Shape, bool], View] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        """Pictures times crops."""
        return len(self._pictures) * self._crops.count

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

    def get(self, item: int, shape: Shape, flip: bool) -> View:
        """Item 0 … len - 1 for a batch of `shape`. `flip` counts only where crops are flipped at all."""
        key = (item, shape, flip and self._crops.flip)
        if key not in self._kept:
            picture, shown = self._pictures.pictures[self.picture_of(item)], self.frame(*key)
            moments = self._from_disk(picture, shown)
            self._kept[key] = View(moments, shown.sizes(picture.height, picture.width), self.mask(*key))
        return self._kept[key]

    def _from_disk(self, picture: Picture, shown: Frame) -> Moments:
        if self._folder is None:
            return self._encode(picture, shown)
        path = self._folder / f"{self._key(picture, shown)}.safetensors"
        try:
            tensors = load_file(path)
            return Moments(tensors["mean"], tensors["logvar"])
        except (FileNotFoundError, SafetensorError, KeyError):
            # none yet, or left behind by a full disk: made anew
            moments = self._encode(picture, shown)
        tensors = {"mean": moments.mean, "logvar": moments.logvar}
        write_whole(path, lambda file: save_file(tensors, file))
        return moments

    def _encode(self, picture: Picture, shown: Frame) -> Moments:
        # one at a time: the result depends on this picture alone, not on which others share a batch
        moments = self._family.encode_image(to_pixels(picture.load(), shown))
        return Moments(moments.mean.cpu().contiguous(), moments.logvar.cpu().contiguous())

    def _key(self, picture: Picture, shown: Frame) -> str:
        text = f"2 {self._family.digests['vae']} {picture.digest} {shown}"
        return hashlib.sha256(text.encode()).hexdigest()
