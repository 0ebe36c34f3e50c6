"""Many schedules, on all processors: what they have shown, and what broke."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from chaos.schedule import BrokenRuleError, play

CHUNK = 20


@dataclass
class Campaign:
    """What a number of schedules have shown together."""

    schedules: int = 0
    phases: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: set[tuple[str, str, str]] = field(default_factory=set)
    repetitions: int = 0
    calls: int = 0
    virtual_seconds: float = 0.0
    broken: dict[int, str] = field(default_factory=dict)
    """By seed: what did not hold, and the last events."""

    def add(self, other: Campaign) -> None:
        self.schedules += other.schedules
        self.phases += other.phases
        self.reasons |= other.reasons
        self.repetitions += other.repetitions
        self.calls += other.calls
        self.virtual_seconds += other.virtual_seconds
        self.broken |= other.broken


def run(first: int, schedules: int) -> Iterator[Campaign]:
    """Plays the seeds `first`, `first` + 1, …; yields what each few of them have shown."""
    chunks = [range(at, min(at + CHUNK, first + schedules)) for at in range(first, first + schedules, CHUNK)]
    if len(chunks) == 1:
        yield _chunk(chunks[0])
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_processors(), mp_context=context) as pool:
        yield from pool.map(_chunk, chunks)


def again(seed: int) -> str:
    """The command that plays exactly this schedule."""
    return f"make chaos SCHEDULES=1 SEED={seed}"


def _chunk(seeds: range) -> Campaign:
    shown = Campaign()
    for seed in seeds:
        shown.schedules += 1
        try:
            outcome = play(seed)
        except BrokenRuleError as error:
            shown.broken[seed] = str(error)
        else:
            shown.add(Campaign(0, outcome.phases, outcome.reasons, outcome.repetitions, outcome.calls, outcome.seconds))
    return shown


def _processors() -> int:
    return len(os.sched_getaffinity(0))
