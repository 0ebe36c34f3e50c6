"""How much time judging may take: a tenth of the training's, unless what is trained depends on every judgement."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.1


class Budget:
    """Measures both, over all attempts at a run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._earlier = 0.0
        self.spent = 0.0
        """Seconds that judging took."""
        self._dearest = 0.0

    @property
    def trained(self) -> float:
        """Seconds since the training began, without those spent here."""
        return max(0.0, self._earlier + self._clock() - self._began - self.spent)

    @property
    def share(self) -> float:
        """Time of judging as a share of the time of training."""
        return self.spent / self.trained if self.trained > 0 else 0.0

    def affords(self) -> bool:
        """Whether one more judgement, as dear as the dearest so far, keeps within the tenth. The first is always
        afforded: nobody knows yet what it takes."""
        return self._dearest == 0.0 or self.spent + self._dearest <= SHARE * self.trained

    def charge(self, seconds: float) -> None:
        """A judgement took so long."""
        self.spent += seconds
        self._dearest = max(self._dearest, seconds)

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"trained": self.trained, "spent": self.spent, "dearest": self._dearest}

    def load(self, state: dict[str, float]) -> None:
        """Goes on from `state`."""
        self._began, self.spent, self._dearest = self._clock(), float(state["spent"]), float(state["dearest"])
        self._earlier = float(state["trained"]) + self.spent
