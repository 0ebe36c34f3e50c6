"""What is to be done every so many steps beside the training: judging, exporting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finetune_trainer.errors import Interrupted
from finetune_trainer.group.team import Team


@dataclass(frozen=True)
class Said:
    """What a duty found."""

    better: bool = False
    """The weights as they are now are the best so far: keep them."""
    stop: bool = False
    """More steps would not help: end here."""


class Duty(Protocol):
    """Called with the averaged weights in place where there are any and modules in evaluation mode, in rank 0 alone.
    A step's duty may be called once more for the same step, when an attempt was stopped or died meanwhile."""

    every: int
    """Optimizer steps from one call to the next; the last step counts as well."""

    def __call__(self, step: int) -> Said:
        """After optimizer step `step` (1 for the first).

        Raises:
            Interrupted: this process is to stop; the duty is called again when the training goes on.
        """

    def state(self) -> Mapping[str, object]:
        """What it must get back to go on in another attempt, as JSON takes it."""

    def load(self, state: Mapping[str, object]) -> None:
        """Puts `state` back."""


@dataclass(frozen=True)
class Heard:
    """What all duties of a step found together."""

    better: bool
    stop: bool
    interrupted: bool
    """Not all were carried out."""


class Roster:
    """The duties of a training, the same in all its processes: rank 0 carries them out, the others wait for it."""

    def __init__(self, duties: Sequence[Duty], team: Team, total_steps: int) -> None:
        """`duties` are rank 0's; what the others give does not count."""
        self._duties, self._team, self._total = tuple(duties), team, total_steps
        self._every: list[int] = team.share([duty.every for duty in duties])
        self._done = [0] * len(self._every)

    def is_due(self, step: int) -> bool:
        """Whether anything is still to be done after step `step`."""
        return any(self._is_due(number, step) for number in range(len(self._every)))

    def attend(self, step: int) -> Heard:
        """Carries out what is due. All processes call it, and get the same answer."""
        better = stop = interrupted = False
        for number, duty in enumerate(self._duties if self._team.leads else ()):
            if not self._is_due(number, step):
                continue
            try:
                said = duty(step)
            except Interrupted:
                interrupted = True
                break
            better, stop = better or said.better, stop or said.stop
            self._done[number] = step
        # judging may take longer than a process may keep the others waiting in a collective
        self._team.rejoin(f"duties/{step}")
        heard, self._done = self._team.share((Heard(better, stop, interrupted), self._done))
        return heard

    def state(self) -> list[dict[str, Any]]:
        """Of each duty the step that it was carried out for and what it remembers, as JSON takes it."""
        return [
            {"step": done, "state": dict(duty.state())} for done, duty in zip(self._done, self._duties, strict=True)
        ]

    def load(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Puts back rank 0's `state`; all processes call it, the others with nothing."""
        for number, (duty, one) in enumerate(zip(self._duties if self._team.leads else (), state, strict=True)):
            duty.load(one["state"])
            self._done[number] = one["step"]
        self._done = self._team.share(self._done)

    def _is_due(self, number: int, step: int) -> bool:
        return self._done[number] < step and (step % self._every[number] == 0 or step == self._total)
