"""The table: each row's times, and ours as a multiple of the script's, by medians over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.trainer.cases import Case, Row
from benchmarks.trainer.results import Result
from benchmarks.trainer.watch import Measured

NOT_MEASURED = "not measured"
HEAD = ("what", "script as documented", "script tuned", "ours", "ours over documented", "over tuned", "must", "aim")


def markdown(rows: Sequence[Row], results: Sequence[Result]) -> str:
    """The whole table."""
    lines = [HEAD, ("---",) * len(HEAD), *(cells(row, results) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cells(row: Row, results: Sequence[Result]) -> tuple[str, ...]:
    """One row's."""
    if row.figure == "mfu":
        shares = [found.mfu for found in measured(row.ours, results) if found.mfu is not None]
        told = f"{statistics.median(shares):.1%}" if shares else outcome(row.ours, results)
        return row.title, "–", "–", told, "–", "–", row.must, row.aim
    sides = (row.script, row.tuned, row.ours)
    told = tuple(in_words(row, case, results) for case in sides)
    return row.title, *told, *(ratio(row, other, results) for other in sides[:2]), row.must, row.aim


def in_words(row: Row, case: Case, results: Sequence[Result]) -> str:
    """Time and memory of one side."""
    times = [figure(row, found) for found in measured(case, results)]
    if not times:
        return outcome(case, results)
    time = statistics.median(times)
    spread = f" ({_time(min(times))} to {_time(max(times))})" if len(times) > 1 else ""
    return _time(time) + spread + memory(measured(case, results))


def memory(found: Sequence[Measured]) -> str:
    """Of a GPU, at most."""
    held, used = max(one.device for one in found), max(one.used or 0 for one in found)
    if not held:
        return ""
    return f", {held / 2**30:.1f} GiB" + (f" ({used / 2**30:.2f} of the GPU)" if used else "")


def ratio(row: Row, other: Case, results: Sequence[Result]) -> str:
    """How many times as fast ours is: the median over the rounds in which both were measured."""
    theirs, mine = rounds(other, results), rounds(row.ours, results)
    both = sorted(theirs.keys() & mine.keys())
    if not both:
        return NOT_MEASURED
    found = statistics.median(figure(row, theirs[number]) / figure(row, mine[number]) for number in both)
    if row.ours.device != "cpu" or row.figure not in ("step", "first"):
        return f"{found:.2f}×"
    work = statistics.median(processor(row, theirs[number]) / processor(row, mine[number]) for number in both)
    return f"{found:.2f}× (processor time {work:.2f}×)"


def figure(row: Row, found: Measured) -> float:
    """Seconds of what the row compares."""
    # what a checkpoint costs can be lost in what the machine does beside it
    stall = max(found.stall or 0.0, 0.0001)
    return {"step": found.step, "first": found.first, "job": found.job, "stall": stall}[row.figure]


def processor(row: Row, found: Measured) -> float:
    """The same in seconds of processor time, which what else a machine does changes little."""
    return found.step_cpu if row.figure == "step" else found.first_cpu


def rounds(case: Case, results: Sequence[Result]) -> dict[int, Measured]:
    """What was found about `case`, by round."""
    return {result.round: result.measured for result in results if result.case == case.key and result.measured}


def measured(case: Case, results: Sequence[Result]) -> list[Measured]:
    """As `rounds`, without them."""
    return list(rounds(case, results).values())


def outcome(case: Case, results: Sequence[Result]) -> str:
    """Of a case without figures."""
    failures = [result.failure for result in results if result.case == case.key and result.measured is None]
    # a bar would begin the next cell
    return f"failed: {failures[-1][:120]}".replace("|", "/") if failures else NOT_MEASURED


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
