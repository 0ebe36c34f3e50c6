"""What is to be done every so many steps beside the training: judging, exporting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Said:
    """What a duty found."""

    better: bool = False
    """The weights as they are now are the best so far: keep them."""
    stop: bool = False
    """More steps would not help: end here."""


class Duty(Protocol):
    """Called with the averaged weights in place where there are any, in rank 0 alone."""

    every: int
    """Optimizer steps from one call to the next; the last step counts as well."""

    def __call__(self, step: int) -> Said:
        """After optimizer step `step` (1 for the first)."""

    def state(self) -> Mapping[str, object]:
        """What it must get back to go on in another attempt, as JSON takes it."""

    def load(self, state: Mapping[str, object]) -> None:
        """Puts `state` back."""
