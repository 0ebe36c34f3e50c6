"""What was measured, one line of JSON for each training, so that a command that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.trainer.cases import Case
from benchmarks.trainer.watch import Measured

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "deepspeed")


@dataclass(frozen=True)
class Result:
    """One training."""

    case: str
    """Its key."""
    round: int
    """1 for the first time that it was measured."""
    measured: Measured | None
    """None where it failed."""
    failure: str
    """How; empty where it did not."""
    where: dict[str, Any]
    """Machine, versions, commit and time."""


def read(file: Path) -> list[Result]:
    """What is in `file` so far. A line that was cut off, by a power cut say, counts for nothing."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_text().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        measured = values.pop("measured")
        found.append(Result(measured=None if measured is None else Measured(**measured), **values))
    return found


def append(file: Path, result: Result) -> None:
    """Adds a line. After one that was cut off it begins on a line of its own."""
    cut = file.is_file() and not file.read_bytes().endswith(b"\n")
    with file.open("a") as out:
        out.write(("\n" if cut else "") + json.dumps(asdict(result)) + "\n")


def next_case(cases: Sequence[Case], rounds: int, done: Sequence[Result]) -> tuple[Case, int] | None:
    """What is to be measured next, and for which time: round by round, so that what else the machine does falls on all
    sides. None when all is done. What failed is not tried again."""
    keys = {(result.case, result.round) for result in done}
    failed = {result.case for result in done if result.measured is None}
    for number in range(1, rounds + 1):
        for case in cases:
            if (case.key, number) not in keys and case.key not in failed:
                return case, number
    return None


def circumstances(device: str) -> dict[str, Any]:
    """Where and when."""
    processor = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": device,
        "cores": f"{os.cpu_count()} × {processor.partition(': ')[2] or platform.machine()}",
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
        "load": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _commit() -> str:
    """Of the code that is measured; a copy without its history has none."""
    command = ["git", "-C", str(Path(__file__).parents[2]), "rev-parse", "--short", "HEAD"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "unknown"
