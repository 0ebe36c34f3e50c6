"""Masks: where the loss counts. White counts, black does not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from finetune_trainer.data.caption_files import listed
from finetune_trainer.data.framing import Frame
from finetune_trainer.data.pictures import MASK_SUFFIX, Picture, PictureSet, read_alpha, read_rgb
from finetune_trainer.errors import DataError

FIELD = "dataset.masks"


class Masks:
    """One for each picture of a set, all looked at once and found usable."""

    def __init__(self, pictures: PictureSet, source: Literal["AlphaChannel", "Sidecar"]) -> None:
        """
        Args:
            source: AlphaChannel: a picture's own transparency; one without it counts everywhere. Sidecar:
                subject-masklabel.png beside subject.jpg, of the same size, of which the brightness counts.

        Raises:
            DataError: masks are missing, of another size, or black; or AlphaChannel and no picture is transparent.
        """
        self._pictures = pictures.pictures
        self._read = _sidecar if source == "Sidecar" else _alpha
        self.opaque: tuple[int, ...] = ()
        """Indices of pictures that count everywhere because nothing in them is transparent."""
        self.digest = self._check(source)

    def get(self, picture: int, frame: Frame, height: int, width: int) -> Tensor:
        """What `frame` shows of a picture's mask, float32 [1, 1, height, width] in 0 … 1: `height` and `width` are
        the latents', and each value is the mean over what it covers."""
        mask = self._read(self._pictures[picture]).crop(frame.box).resize((width, height), Image.Resampling.BOX)
        if frame.flip:
            mask = ImageOps.mirror(mask)
        return torch.from_numpy(np.array(mask, np.uint8)).float().div(255)[None, None]

    def _check(self, source: str) -> str:
        missing = [p.path.name for p in self._pictures if source == "Sidecar" and not mask_path(p.path).is_file()]
        if missing:
            remedy = f"put {mask_path(Path(missing[0])).name} beside it"
            raise DataError(f"{FIELD}: {listed(missing)} without a mask; {remedy}, or remove dataset.masks")
        total, black, opaque = hashlib.sha256(), [], []
        for index, picture in enumerate(self._pictures):
            mask = self._read(picture)
            lowest, highest = mask.getextrema()
            black += [picture.path.name] if highest == 0 else []
            opaque += [index] if lowest == 255 else []
            total.update(mask.tobytes())
        if black:
            raise DataError(
                f"{FIELD}: the mask of {listed(black)} is black everywhere, so that nothing of the picture would be "
                "learned; paint what counts white, or remove the picture"
            )
        if source == "AlphaChannel" and len(opaque) == len(self._pictures):
            raise DataError(
                f"{FIELD}: AlphaChannel, but nothing in any picture is transparent; cut the subject out and save it "
                "as PNG or WebP, or remove dataset.masks"
            )
        self.opaque = tuple(opaque) if source == "AlphaChannel" else ()
        return total.hexdigest()


def mask_path(picture: Path) -> Path:
    """Where the mask of a picture lies: subject-masklabel.png for subject.jpg."""
    return picture.with_name(picture.stem + MASK_SUFFIX)


def _alpha(picture: Picture) -> Image.Image:
    return read_alpha(picture.path)


def _sidecar(picture: Picture) -> Image.Image:
    path = mask_path(picture.path)
    mask = read_rgb(path, FIELD).convert("L")
    if mask.size != (picture.width, picture.height):
        raise DataError(
            f"{FIELD}: {path.name} has {mask.width} × {mask.height} pixels and its picture {picture.width} × "
            f"{picture.height}; they must be the same"
        )
    return mask
