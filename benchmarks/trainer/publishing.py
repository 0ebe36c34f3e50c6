"""What was measured, for the repository: the figures that the tables are made of, and the tables in the docs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.trainer import table
from benchmarks.trainer.cases import CPU_ROWS, GPU_ROWS, Device, Row
from benchmarks.trainer.results import Result
from benchmarks.trainer.watch import Measured

ROOT = Path(__file__).parents[2]
FIGURES = Path(__file__).with_name("figures.json")
DOCS = ROOT / "docs/performance.md"
SECTION = "## Tables\n"
DIGITS = 4
PARTS: tuple[tuple[Device, str, tuple[Row, ...]], ...] = (
    ("cpu", "CPU, `builtin://tiny-shapes`, 64 px, fp32", CPU_ROWS),
    ("cuda", "GPU, shapes of Stable Diffusion 1.5 with random weights, 512 px, bf16", GPU_ROWS),
)


def publish(results: Sequence[Result], figures: Path = FIGURES, docs: Path = DOCS) -> None:
    """Puts `results` in the place of those of the same cases in `figures`, and fills the tables in `docs`."""
    cases = {result.case for result in results}
    kept = [result for result in kept_in(figures) if result.case not in cases]
    known = {row.key for _, _, rows in PARTS for line in rows for row in (line.script, line.tuned, line.ours)}
    figures.write_text(in_json([one for one in (*kept, *results) if one.case in known]))
    docs.write_text(filled(docs.read_text(), section(kept_in(figures))))


def kept_in(file: Path) -> list[Result]:
    """What `in_json` wrote; nothing where there is no file."""
    if not file.is_file():
        return []
    said = json.loads(file.read_text())
    return [
        Result(
            case,
            one["round"],
            None if one["measured"] is None else Measured(**one["measured"]),
            one["failure"],
            {**said["machines"][one["machine"]], "at": one["at"], "load": one["load"]},
        )
        for case, rounds in said["cases"].items()
        for one in rounds
    ]


def in_json(results: Sequence[Result]) -> str:
    """A line for each training, and each machine once; four digits are more than a measurement has."""
    machines: list[dict[str, Any]] = []
    cases: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        machine = {name: value for name, value in result.where.items() if name not in ("at", "load")}
        if machine not in machines:
            machines.append(machine)
        found = {} if result.measured is None else asdict(result.measured)
        line = {
            "round": result.round,
            "machine": machines.index(machine),
            "at": result.where.get("at"),
            "load": result.where.get("load"),
            "measured": {name: _rounded(value) for name, value in found.items()} or None,
            "failure": result.failure,
        }
        cases.setdefault(result.case, []).append(line)
    lines = [
        f"  {json.dumps(case)}: [\n   " + ",\n   ".join(map(json.dumps, rounds)) + "\n  ]"
        for case, rounds in sorted(cases.items())
    ]
    told = ",\n  ".join(map(json.dumps, machines))
    return '{\n "machines": [\n  ' + told + '\n ],\n "cases": {\n' + ",\n".join(lines) + "\n }\n}\n"


def section(results: Sequence[Result]) -> str:
    """Both tables, each with where and when it was measured."""
    parts = [SECTION, '"Not measured" means that: there is no figure yet, neither good nor bad.\n']
    for device, title, rows in PARTS:
        parts += [f"### {title}\n", table.markdown(rows, results)]
        of_it = [result for result in results if result.case.startswith(device + "/")]
        parts += [line + "\n" for line in circumstances(of_it)]
    return "\n".join(parts)


def circumstances(results: Sequence[Result]) -> list[str]:
    """A line for each machine, versions and commit that there are figures of."""
    found: dict[str, list[Result]] = {}
    for result in results:
        where = result.where
        versions = ", ".join(f"{name} {value}" for name, value in where["versions"].items())
        device = where["cores"] if where["device"] == "cpu" else f"{where['device']}; {where['cores']}"
        words = f"{device}; threads: {where['threads']}; {versions}; commit {where['commit']}"
        found.setdefault(words, []).append(result)
    return [
        f"Measured on {words}; {_dates(some)}; load {_span([one.where['load'] for one in some])}."
        for words, some in found.items()
    ]


def filled(text: str, tables: str) -> str:
    """`text` with `tables` in the place of its section of that name."""
    before, _, rest = text.partition(SECTION)
    _, heading, after = rest.partition("\n## ")
    return before + tables + heading + after


def _dates(results: Sequence[Result]) -> str:
    days = sorted({str(one.where["at"])[:10] for one in results})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _span(values: Sequence[float]) -> str:
    return f"{min(values):g}" if min(values) == max(values) else f"{min(values):g} to {max(values):g}"


def _rounded(value: float | int | None) -> float | int | None:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
