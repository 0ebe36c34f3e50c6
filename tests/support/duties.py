"""A duty that says what was written down for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from finetune_trainer.errors import Interrupted
from finetune_trainer.training.duties import Said


@dataclass
class Scripted:
    """Implements Duty."""

    every: int = 2
    better: tuple[int, ...] = ()
    stop: int | None = None
    interrupted: int | None = None
    """Is stopped in the middle of this step's, the first time."""
    look: Callable[[int], None] | None = None
    asked: list[int] = field(default_factory=list)
    """Steps, in this attempt."""
    finished: list[int] = field(default_factory=list)
    """Steps, in all attempts: what it remembers."""

    def __call__(self, step: int) -> Said:
        self.asked.append(step)
        if step == self.interrupted:
            self.interrupted = None
            raise Interrupted("stopped")
        if self.look is not None:
            self.look(step)
        self.finished.append(step)
        return Said(step in self.better, step == self.stop)

    def state(self) -> Mapping[str, object]:
        return {"finished": list(self.finished)}

    def load(self, state: Mapping[str, object]) -> None:
        found = state["finished"]
        assert isinstance(found, list)
        self.finished = list(found)
