"""The operator at scale, beside a floor, in one run: `.venv/bin/python -m benchmarks.operator` from the root.

It brings up a control plane of its own (a real API server; KWOK pretends to be nodes), runs the operator as a process
with the chart's rights and default settings, and prints a table. See benchmarks/README.md for what each row means.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # for support/
from support.control_plane import ROOT, free_port

from benchmarks.operator import burst, plane, progress, report, steady

RATE = 10.0
"""Edits a second."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    jobs: int
    present: int
    running: int
    idle_seconds: float
    trickle_seconds: float
    progress_seconds: float


FULL = Sizes(jobs=1000, present=5000, running=1000, idle_seconds=60, trickle_seconds=60, progress_seconds=120)
QUICK = Sizes(jobs=50, present=200, running=50, idle_seconds=5, trickle_seconds=5, progress_seconds=10)


async def measure(sizes: Sizes, console: Console) -> report.Figures:
    """All of it, on one control plane."""
    settings = {"FINETUNE_OPERATOR_LOG_FORMAT": "json", "FINETUNE_OPERATOR_PROGRESS_SECONDS": "5"}  # the defaults
    resting = sizes.present - sizes.jobs
    async with plane.running(settings, free_port()) as running:
        console.log(f"the floor: {sizes.jobs} jobs, by a bare client")
        floor = await burst.measure_floor(running, sizes.jobs)
        empty = await running.start(), running.memory()
        console.log(f"{sizes.jobs} jobs at once")
        many = await burst.measure_burst(running, "burst", sizes.jobs)
        console.log(f"{resting} more, suspended")
        await steady.fill(running, resting)
        idle = await steady.measure_idle(running, sizes.idle_seconds)
        console.log(f"{RATE:g} edits a second")
        trickle = await steady.measure_trickle(running, resting, RATE, sizes.trickle_seconds, seed=1)
        console.log("a cold start")
        cold = await steady.measure_cold_start(running, sizes.present)
        fresh = running.memory()
        console.log(f"{sizes.running} trainings to follow")
        try:
            followed = await progress.measure_progress(running, sizes.running, resting, RATE, sizes.progress_seconds)
        except TimeoutError as error:
            console.log(f"[red]given up: {error or 'edits were not told of'}")
            followed = None  # what was measured before still counts
        return report.Figures(
            jobs=sizes.jobs,
            present=sizes.present,
            floor=floor,
            burst=many,
            memory_empty=empty[1],
            idle=idle,
            trickle=trickle,
            cold=cold,
            memory_fresh=fresh,
            followed=followed,
            peak=running.peak(),
        )


def circumstances() -> dict[str, str]:
    """Where and when."""
    commit = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    server = subprocess.run(["kube-apiserver", "--version"], check=False, capture_output=True, text=True).stdout
    processor = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(commit, check=False, capture_output=True, text=True).stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {processor.partition(': ')[2] or platform.machine()}",
        "load": f"{os.getloadavg()[2]:.1f} over the last 15 minutes",
        "python": platform.python_version(),
        "kubernetes": server.strip(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in ("kopf", "kubernetes", "aiohttp", "pydantic")),
        "command": f"python -m benchmarks.operator {' '.join(sys.argv[1:])}".strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operator", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="50 jobs among 200, in about a minute")
    parser.add_argument("--jobs", type=int, help="FineTuneJobs created at once (1000)")
    parser.add_argument("--present", type=int, help="FineTuneJobs present (5000); those beyond --jobs are suspended")
    parser.add_argument("--running", type=int, help="trainings whose progress is followed (1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append all figures to FILE, as a line of JSON")
    given = parser.parse_args()
    chosen = asdict(QUICK if given.quick else FULL)
    chosen |= {name: vars(given)[name] for name in ("jobs", "present", "running") if vars(given)[name] is not None}
    warnings.filterwarnings("ignore", message="Unverified HTTPS request")
    console = Console()
    where = circumstances()
    figures = asyncio.run(measure(Sizes(**chosen), console))
    console.print(report.table(figures))
    for name, value in where.items():
        console.print(f"{name}: {value}", highlight=False)
    if given.json is not None:
        with given.json.open("a") as out:
            out.write(json.dumps({**where, **asdict(figures)}) + "\n")


if __name__ == "__main__":
    main()
