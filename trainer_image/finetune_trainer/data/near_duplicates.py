"""Pictures that look alike: a perceptual hash that scaling, compression and small retouches leave as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

MAX_DISTANCE = 5
"""Bits of 64 in which near-duplicates may differ."""


def fingerprint(image: Image.Image) -> int:
    """64 bits: whether each of 8 × 8 places is brighter than the one to its left (the difference hash, dHash)."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def groups(fingerprints: Sequence[int], max_distance: int = MAX_DISTANCE) -> list[list[int]]:
    """Indices of pictures that look alike, two or more in each group; a picture is in the group of any that it is
    near to. In order."""
    group_of = list(range(len(fingerprints)))
    bits = np.array(fingerprints, np.uint64)
    for second in range(1, len(bits)):
        near = np.bitwise_count(bits[:second] ^ bits[second]) <= max_distance
        for first in np.flatnonzero(near):
            old, new = group_of[second], group_of[first]
            if old != new:
                group_of = [new if group == old else group for group in group_of]
    found: dict[int, list[int]] = {}
    for index, group in enumerate(group_of):
        found.setdefault(group, []).append(index)
    return [members for members in found.values() if len(members) > 1]
