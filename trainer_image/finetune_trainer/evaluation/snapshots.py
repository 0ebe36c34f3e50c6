"""Small copies of pictures drawn on the way, for the report; they travel in the checkpoints."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

from PIL import Image

SIDE = 128
SEEDS = 2
MOST = 12
"""Steps that are kept. At about 4 kB a picture, 16 prompts stay below 2 MB."""


class Snapshots:
    """The first pictures of each prompt, step by step."""

    def __init__(self) -> None:
        self._steps: dict[int, list[list[bytes]]] = {}

    def add(self, step: int, rows: Sequence[Sequence[Image.Image]]) -> None:
        """Keeps the first two pictures of each prompt. Of many steps those are kept that are spread most evenly."""
        self._steps[step] = [[_small(picture) for picture in row[:SEEDS]] for row in rows]
        while len(self._steps) > MOST:
            del self._steps[_dispensable(sorted(self._steps))]

    def rows(self) -> list[tuple[int, list[list[Image.Image]]]]:
        """(step, for each prompt its pictures), in the order of steps."""
        return [
            (step, [[Image.open(io.BytesIO(data)) for data in row] for row in rows])
            for step, rows in sorted(self._steps.items())
        ]

    def state(self) -> dict[str, list[list[str]]]:
        """JSON for a checkpoint."""
        return {
            str(step): [[base64.b64encode(data).decode() for data in row] for row in rows]
            for step, rows in self._steps.items()
        }

    def load(self, state: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Goes on from `state`."""
        self._steps = {
            int(step): [[base64.b64decode(data) for data in row] for row in rows] for step, rows in state.items()
        }


def _dispensable(steps: Sequence[int]) -> int:
    """The step whose neighbours are closest to each other; never the first or the last."""
    gaps = {steps[i]: steps[i + 1] - steps[i - 1] for i in range(1, len(steps) - 1)}
    return min(gaps, key=lambda step: gaps[step])


def _small(picture: Image.Image) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()
