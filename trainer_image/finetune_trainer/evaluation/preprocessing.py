"""Pictures as an encoder takes them, by its preprocessor_config.json, with Pillow and numpy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST = 1024
"""Pixels; a file that asks for more is not one of an encoder."""


@dataclass(frozen=True)
class Preprocessing:
    """Scale, cut out the middle, rescale, normalise: what transformers' image processors do, in their order."""

    shortest_edge: int | None
    """Scaled so that the shorter side has so many pixels; None scales to `size` whatever the aspect."""
    size: tuple[int, int]
    """Height and width of what the encoder gets."""
    resample: Image.Resampling
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, picture: Image.Image) -> NDArray[np.float32]:
        """float32 [3, height, width] of an RGB picture of any size."""
        height, width = self.size
        if self.shortest_edge is None:
            square = picture.convert("RGB").resize((width, height), self.resample)
        else:
            short = min(picture.size)
            scaled = tuple(max(1, int(side * self.shortest_edge / short)) for side in picture.size)
            whole = picture.convert("RGB").resize((scaled[0], scaled[1]), self.resample)
            # beyond the edges of a picture that is smaller than the cut there is black
            left, top = (whole.width - width) // 2, (whole.height - height) // 2
            square = whole.crop((left, top, left + width, top + height))
        values = np.asarray(square, np.float32) * np.float32(self.scale)
        normal = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32)


def read_preprocessing(path: Path) -> Preprocessing:
    """What preprocessor_config.json says.

    Raises:
        ValueError: it does not say it in a way that is known.
        OSError: it is not there.
    """
    config = json.loads(path.read_text("utf-8"))
    if not isinstance(config, dict):
        raise ValueError("not a JSON object")
    shortest, size = _resized(config.get("size", 224))
    if config.get("do_center_crop"):
        size = _resized(config.get("crop_size", size))[1]
    for side in (*size, shortest or 1):
        if not 1 <= side <= LARGEST:
            raise ValueError(f"size {side} is not one of an encoder's input")
    return Preprocessing(
        shortest_edge=shortest if config.get("do_center_crop") else None,
        size=size,
        resample=Image.Resampling(config.get("resample", Image.Resampling.BICUBIC)),
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=_three(config, "image_mean", 0.5),
        std=_three(config, "image_std", 0.5),
    )


def _resized(size: object) -> tuple[int | None, tuple[int, int]]:
    """(shortest edge, (height, width)) of `size` in any of the forms in use: 224, {"shortest_edge": 224},
    {"height": 224, "width": 224}."""
    if isinstance(size, int):
        return size, (size, size)
    if isinstance(size, Mapping) and "shortest_edge" in size:
        edge = int(size["shortest_edge"])
        return edge, (edge, edge)
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return None, (int(size["height"]), int(size["width"]))
    raise ValueError(f"size is {str(size)[:64]}")


def _three(config: Mapping[str, Any], name: str, default: float) -> tuple[float, float, float]:
    if not config.get("do_normalize", True):
        return (0.0, 0.0, 0.0) if name == "image_mean" else (1.0, 1.0, 1.0)
    values = config.get(name, [default] * 3)
    if len(values) != 3 or (name == "image_std" and not all(value > 0 for value in values)):
        raise ValueError(f"{name} is {values}")
    return (float(values[0]), float(values[1]), float(values[2]))
