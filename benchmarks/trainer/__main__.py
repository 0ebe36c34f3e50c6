"""Trainings beside those of Diffusers' example scripts: `.venv/bin/python -m benchmarks.trainer` from the root.

Each command measures what fits into 9 minutes, adds a line to --json for each training, and says whether there is
more; the same command goes on. `--table` prints the tables of what there is and measures nothing; `--publish` takes it
over into figures.json and docs/performance.md. Rows for a GPU are left out where there is none, and say so."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import gettempdir

import torch

from benchmarks.trainer.cases import CPU_ROWS, GPU_ROWS, Case, cases_of
from benchmarks.trainer.processes import LIMIT_SECONDS, Failed, OutOfTime, measure
from benchmarks.trainer.publishing import publish, section
from benchmarks.trainer.results import Result, append, circumstances, next_case, read

COMMAND_SECONDS = 535
ROUNDS = 3
EXPECTED = {"steps": 90.0, "job": 420.0}
"""Seconds of a process, with room, before one like it was measured."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks.jsonl"), metavar="FILE", help="the lines")
    parser.add_argument("--table", action="store_true", help="print the tables, measure nothing")
    parser.add_argument("--publish", action="store_true", help="put the figures into the repository, measure nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose key has TEXT, such as cpu/lora")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each case is measured ({ROUNDS})")
    parser.add_argument("--seconds", type=float, default=COMMAND_SECONDS, help="for this command")
    parser.add_argument(
        "--work", type=Path, default=Path(gettempdir(), "finetune-benchmark"), help="for models and outputs"
    )
    given = parser.parse_args()
    if not (given.table or given.publish):
        cuda = torch.cuda.is_available()
        cases = [case for case in cases_of(GPU_ROWS if cuda else CPU_ROWS) if given.only in case.key]
        device = torch.cuda.get_device_name() if cuda else "cpu"
        more = measure_all(cases, given.rounds, given.json, given.work, given.seconds, device)
        print("There is more to measure: the same command goes on." if more else "All is measured.")
    if given.publish:
        publish(read(given.json))
    print(section(read(given.json)), end="")


def measure_all(cases: list[Case], rounds: int, file: Path, work: Path, seconds: float, device: str) -> bool:
    """Measures until all is done or the next one would not fit into `seconds`; whether there is more."""
    began, measured = time.monotonic(), 0
    while (found := next_case(cases, rounds, read(file))) is not None:
        case, number = found
        left = seconds - (time.monotonic() - began)
        if measured and left < min(expected(case, read(file)), LIMIT_SECONDS):
            return True
        measured += 1
        where = circumstances(device)
        print(f"{case.key}, round {number}", flush=True)
        # the first one has all the time there is, or what takes long would never be measured
        left = seconds - (time.monotonic() - began) if measured > 1 else LIMIT_SECONDS
        try:
            append(file, Result(case.key, number, measure(case, work, left), "", where))
        except Failed as error:
            append(file, Result(case.key, number, None, str(error), where))
        except OutOfTime:
            return True
    return False


def expected(case: Case, done: list[Result]) -> float:
    """Seconds that a process will take: half as long again as the last time, else a guess."""
    times = [result.measured.job for result in done if result.case == case.key and result.measured is not None]
    guess = 1.5 * times[-1] if times else EXPECTED["job" if case.steps > 100 else "steps"]
    return guess * (2 if case.warm else 1)


if __name__ == "__main__":
    main()
