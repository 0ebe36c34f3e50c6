"""The VAE's view of each picture, computed once and kept in memory and, where there is a cache folder, on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune_trainer.data.draw import crop_offsets
from finetune_trainer.data.pictures import Picture, PictureSet, to_pixels
from finetune_trainer.data.whole_files import write_whole
from finetune_trainer.families.base import Family, Moments

CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Crops:
    """How a picture becomes squares."""

    resolution: int
    """Side in pixels."""
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


class Latents:
    """Moments of (picture, crop, mirrored or not). The mean *and* the variance are kept, so that a cached picture
    is sampled exactly as an uncached one."""

    def __init__(self, family: Family, pictures: PictureSet, crops: Crops, folder: Path | None) -> None:
        self._family, self._pictures, self._crops = family, pictures, crops
        self._folder = folder
        self._kept: dict[tuple[int, int, bool], Moments] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        """Pictures times crops."""
        return len(self._pictures) * self._crops.count

    def get(self, item: int, flip: bool) -> Moments:
        """Moments of item 0 … len - 1, one row, on the CPU. `flip` counts only where crops are flipped at all."""
        picture, crop = divmod(item, self._crops.count)
        key = (picture, crop, flip and self._crops.flip)
        if key not in self._kept:
            self._kept[key] = self._from_disk(*key)
        return self._kept[key]

    def _from_disk(self, index: int, crop: int, flip: bool) -> Moments:
        picture, offsets = self._pictures.pictures[index], self._crops.offsets(index, crop)
        if self._folder is None:
            return self._encode(picture, offsets, flip)
        path = self._folder / f"{self._key(picture, offsets, flip)}.safetensors"
        try:
            tensors = load_file(path)
            return Moments(tensors["mean"], tensors["logvar"])
        except (FileNotFoundError, SafetensorError, KeyError):
            # none yet, or left behind by a full disk: made anew
            moments = self._encode(picture, offsets, flip)
        tensors = {"mean": moments.mean, "logvar": moments.logvar}
        write_whole(path, lambda file: save_file(tensors, file))
        return moments

    def _encode(self, picture: Picture, offsets: tuple[float, float], flip: bool) -> Moments:
        # one at a time: the result depends on this picture alone, not on which others share a batch
        pixels = to_pixels(picture.load(), self._crops.resolution, offsets, flip)
        moments = self._family.encode_image(pixels)
        return Moments(moments.mean.cpu().contiguous(), moments.logvar.cpu().contiguous())

    def _key(self, picture: Picture, offsets: tuple[float, float], flip: bool) -> str:
        text = f"1 {self._family.digests['vae']} {picture.digest} {self._crops.resolution} {offsets} {flip}"
        return hashlib.sha256(text.encode()).hexdigest()
