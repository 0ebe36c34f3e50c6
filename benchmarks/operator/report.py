"""The figures as a table: what was measured, what it is held against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from benchmarks.operator.burst import Burst, Floor
from benchmarks.operator.progress import Followed
from benchmarks.operator.steady import ColdStart, Idle, Trickle

Row = tuple[str, str, str]


@dataclass(frozen=True)
class Figures:
    """Everything that one run found."""

    jobs: int
    present: int
    floor: Floor
    burst: Burst
    memory_empty: float
    idle: Idle
    trickle: Trickle
    cold: ColdStart
    memory_fresh: float
    followed: Followed | None
    peak: float


def table(figures: Figures) -> Table:
    """For the terminal."""
    made = Table(title=f"{figures.jobs} FineTuneJobs at once, {figures.present} present")
    made.add_column("what")
    made.add_column("measured", justify="right")
    made.add_column("aim or floor", justify="right")
    for row in rows(figures):
        made.add_row(*row)
    return made


def rows(figures: Figures) -> Iterator[Row]:
    """(what, measured, what it is held against)."""
    yield from _burst(figures)
    yield from _present(figures)
    if figures.followed is not None:
        yield from _progress(figures.followed)


def _burst(figures: Figures) -> Iterator[Row]:
    burst, floor, jobs = figures.burst, figures.floor, figures.jobs
    yield "all child Jobs exist, s", f"{burst.children_seconds:.1f}", f"{floor.children_seconds:.1f} (floor)"
    yield "… as a multiple of the floor", f"{burst.children_seconds / floor.children_seconds:.2f}", "<= 2"
    yield "all Succeeded, s", f"{burst.succeeded_seconds:.1f}", f"{floor.completed_seconds:.1f} (KWOK alone)"
    yield "CPU of the client until all child Jobs exist, s", *_client(burst.cpu_children, floor.cpu_children)
    yield "CPU of the API server until then, s", *_server(burst.cpu_children, floor.cpu_children)
    yield "CPU of the API server until the end, s", *_server(burst.cpu_succeeded, floor.cpu_completed)
    yield "CPU of the operator until all Succeeded, ms a job", f"{burst.cpu_succeeded['operator'] / jobs * 1e3:.1f}", ""
    yield "API calls a job until Succeeded", f"{sum(burst.calls_succeeded.values()) / jobs:.2f}", "<= 12"
    for call, count in burst.calls_succeeded.items():
        yield f"  {call}", f"{count / jobs:.2f}", ""
    yield "passes a job until Succeeded", f"{burst.passes / jobs:.1f}", ""
    yield "child Jobs, owners of them", f"{burst.children}, {burst.owners}", f"{jobs}, {jobs}"


def _client(mine: dict[str, float], floor: dict[str, float]) -> tuple[str, str]:
    return f"{mine['operator'] + mine['benchmark']:.1f}", f"{floor['benchmark']:.1f} (floor)"


def _server(mine: dict[str, float], floor: dict[str, float]) -> tuple[str, str]:
    return f"{mine['API server']:.1f}", f"{floor['API server']:.1f} (floor)"


def _present(figures: Figures) -> Iterator[Row]:
    idle, trickle, cold, present = figures.idle, figures.trickle, figures.cold, figures.present
    yield "memory (RSS) with no job, MiB", f"{figures.memory_empty:.0f}", ""
    yield f"memory with {present} present, MiB", f"{idle.memory:.0f}", "< 250"
    yield "… after a fresh start, MiB", f"{figures.memory_fresh:.0f}", "< 250"
    yield "… highest of all, MiB", f"{figures.peak:.0f}", ""
    yield f"CPU while idle ({idle.seconds:.0f} s), % of a core", f"{idle.cpu * 100:.2f}", "< 2"
    yield from _latency(trickle, f"{len(trickle.seconds)} edits, 10 a second")
    yield "cold start: ready, s", f"{cold.ready:.1f}", ""
    yield "cold start: first status (Lease included), s", f"{cold.first_status:.1f}", ""
    yield "cold start: every job reconciled, s", f"{cold.all_seen:.1f}", ""


def _latency(trickle: Trickle, what: str) -> Iterator[Row]:
    yield f"edit to status, {what}: p50, ms", f"{trickle.quantile(0.5) * 1e3:.0f}", ""
    yield "… p99, ms", f"{trickle.quantile(0.99) * 1e3:.0f}", "< 1000"
    yield "… change to start of its pass, p99, s (metric)", trickle.queue, "< 1"


def _progress(found: Followed) -> Iterator[Row]:
    yield f"progress of {found.count} trainings: status writes a second", f"{found.writes_per_second:.1f}", "<= 20"
    yield "… most in any one second", f"{found.most_writes}", ""
    yield "… age of progress: p50, s", f"{found.ages[len(found.ages) // 2]:.0f}" if found.ages else "-", ""
    yield "… oldest, s", f"{found.ages[-1]:.0f}" if found.ages else "-", ""
    yield "… trainers that answer but show none", f"{found.never}", "0"
    outcomes = ", ".join(f"{name} {count:.0f}" for name, count in sorted(found.outcomes.items()))
    yield f"… answers in {found.seconds:.0f} s", outcomes, ""
    yield from _latency(found.trickle, "meanwhile")
    yield "… CPU of the operator, % of a core", f"{found.operator_cpu * 100:.1f}", ""
