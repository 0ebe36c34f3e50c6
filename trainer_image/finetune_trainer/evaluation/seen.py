"""What there was to see in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Verdicts:
    """What a classifier calls each of N pictures."""

    classes: tuple[str, ...]
    """A shape, `subject` or `none`."""
    colours: tuple[str, ...]
    """Of the shape; means nothing for `subject` and `none`."""
    backgrounds: tuple[str, ...]

    def rows(self) -> list[Verdicts]:
        """Each picture by itself."""
        triples = zip(self.classes, self.colours, self.backgrounds, strict=True)
        return [Verdicts((name,), (colour,), (background,)) for name, colour, background in triples]


@dataclass(frozen=True)
class Seen:
    """N pictures as an encoder sees them."""

    features: NDArray[np.float32]
    """[N, D]. Pictures are compared by Euclidean distance."""
    verdicts: Verdicts | None = None

    def rows(self) -> list[Seen]:
        """Each picture by itself."""
        one = [None] * len(self.features) if self.verdicts is None else self.verdicts.rows()
        return [Seen(self.features[i : i + 1], verdict) for i, verdict in enumerate(one)]


def joined(parts: Sequence[Seen]) -> Seen:
    """The pictures of all parts, of which there is at least one, in their order."""
    verdicts = [part.verdicts for part in parts if part.verdicts is not None]
    whole = None
    if verdicts:
        whole = Verdicts(
            tuple(name for one in verdicts for name in one.classes),
            tuple(name for one in verdicts for name in one.colours),
            tuple(name for one in verdicts for name in one.backgrounds),
        )
    return Seen(np.concatenate([part.features for part in parts]), whole)
