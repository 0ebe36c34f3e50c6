"""An event loop whose clock jumps to the next timer: hours pass in milliseconds, each time in the same order."""

from __future__ import annotations

import asyncio
import selectors

MOST_TURNS = 20_000


class StandstillError(Exception):
    """Time stands still: every task waits for something that no timer will bring, or some are busy without end."""


class _JumpingSelector(selectors.SelectSelector):
    """Nothing ever arrives from outside: instead of waiting, the time is put forward."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0
        """Of the event loop since the time last moved."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StandstillError("all wait, and nothing is due")
        self._turns += 1
        if timeout > 0:
            self.now += timeout
            self._turns = 0
        if self._turns > MOST_TURNS:
            raise StandstillError(f"busy for {MOST_TURNS} turns at {self.now:.2f} s")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time begins at 0 and moves only when everything waits."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now
