"""Many jobs at once on a real API server with pretended nodes: what the benchmark counts, in its quick size.

Nothing here depends on how fast the machine is: `benchmarks/operator` measures that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no part of what is installed

from support import control_plane
from support.need import missing

from benchmarks.operator import burst, plane, progress, steady

JOBS, SUSPENDED, RUNNING = 50, 50, 60
CALLS = 12
"""API calls a job from apply to Succeeded, without progress: the bound that the project has set itself."""
PER_SECOND, IN_FLIGHT = 20, 40
"""Questions to trainers, and how many may have begun before the counting did: those of two seconds, their limit."""


@pytest.fixture
def program() -> Path:
    found = control_plane.program()
    if found is None:
        missing("FINETUNE_CONTROL_PLANE names no program that brings up a control plane with KWOK")
    return found


async def test_many_jobs_at_once(program: Path) -> None:
    async with plane.running({}, control_plane.free_port()) as running:
        await running.start()
        many = await burst.measure_burst(running, "burst", JOBS)
        assert many.phases == {"Succeeded": JOBS}
        assert many.reasons == {"ResultUnreported": JOBS}, "KWOK's pods leave no termination message"
        assert (many.children, many.owners) == (JOBS, JOBS), "one child each"
        assert sum(many.calls_succeeded.values()) <= CALLS * JOBS, many.calls_succeeded

        await steady.fill(running, SUSPENDED)
        edits = await steady.measure_trickle(running, SUSPENDED, rate=10, seconds=2, seed=1)
        assert len(edits.seconds) == 20, "every edit is told of"

        found = await progress.measure_progress(running, RUNNING, SUSPENDED, rate=5, seconds=4)
        assert found.never == 0, "who answers is heard, whoever else is silent"
        assert found.outcomes["unreachable"] > 0
        asked = sum(found.outcomes.values())
        assert asked <= PER_SECOND * found.seconds + IN_FLIGHT, "once a second each would be three times as many"
