"""An event loop whose clock jumps to the next timer: hours pass in milliseconds, each time in the same order."""

from __future__ import annotations

import asyncio
import selectors


class StandstillError(Exception):
    """Every task waits for something that no timer will bring."""


class _JumpingSelector(selectors.SelectSelector):
    """Nothing ever arrives from outside: instead of waiting, the time is put forward."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StandstillError
        if timeout > 0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time begins at 0 and moves only when everything waits."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now
