"""How bad a schedule is: drawn once from its seed, so that some are hard in one way and mild in all others."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Weather:
    """Chances are per call, per event or per step; times in seconds."""

    faults: float
    """A call fails, before or after its effect, or meets somebody else's write."""
    kills: float
    """The process dies at a call, before or after its effect."""
    slow: float
    """A call takes seconds."""
    lag: float
    """Longest time that a watch event is under way."""
    drops: float
    """A watch event never comes."""
    breaks: float
    """A stream breaks, and is listed anew: nobody tells what vanished meanwhile."""
    swaps: float
    """Two events about different objects change places."""
    outages: float
    """Nothing answers for a while."""
    operators: int
    """Processes with warm memories; one works."""
    handovers: float
    """Another one takes over, while the former may go on for a while."""
    jumps: float
    """An operator's clock jumps."""
    users: float
    """Somebody edits, suspends, deletes."""
    saboteurs: float
    """Somebody deletes or puts in place what is the operator's."""
    nodes: float
    """Evictions, lost nodes."""
    shortages: float
    """Quotas, no room on nodes, images that cannot be pulled."""


CALM = Weather(
    faults=0, kills=0, slow=0, lag=0.1, drops=0, breaks=0, swaps=0, outages=0, operators=1, handovers=0, jumps=0,
    users=0, saboteurs=0, nodes=0, shortages=0,
)  # fmt: skip


def forecast(rng: random.Random) -> Weather:
    """The weather of one schedule."""

    def some(*values: float) -> float:
        return rng.choice(values)

    return replace(
        CALM,
        faults=some(0, 0.03, 0.15, 0.3),
        kills=some(0, 0.005, 0.03),
        slow=some(0, 0.02, 0.1),
        lag=some(0.1, 2.0, 20.0, 200.0),
        drops=some(0, 0, 0.02, 0.2),
        breaks=some(0, 0.02, 0.1),
        swaps=some(0, 0, 0.2),
        outages=some(0, 0, 0.01),
        operators=rng.choice((1, 1, 2)),
        handovers=some(0.02, 0.1),
        jumps=some(0, 0, 0.02),
        users=some(0.05, 0.2, 0.4),
        saboteurs=some(0, 0, 0.03, 0.1),
        nodes=some(0, 0.05, 0.2),
        shortages=some(0, 0.02, 0.1),
    )
