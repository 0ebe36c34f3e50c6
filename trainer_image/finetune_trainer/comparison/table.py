"""The comparison as a table in Markdown. Pure functions of rows; nothing is left out for how it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.filesize import decimal

from finetune_trainer.comparison.rows import Row, by_name, seconds_to
from finetune_trainer.comparison.spread import Spread, spread

MISSING = "–"
FIGURES = {
    "fidelity": "fidelity",
    "promptFidelity": "prompt fidelity",
    "leak": "leak",
    "classAccuracy": "class kept",
    "drift": "drift",
    "nearCopies": "near copies",
}
"""Names of judged figures → heads of columns."""


def markdown(rows: Sequence[Row], fidelity: float) -> str:
    """A table with a line for each job, and one for the base model before them.

    Args:
        fidelity: for the time until it is reached.
    """
    groups = by_name(rows)
    shown = [name for name in FIGURES if any(name in row.figures for row in rows)]
    head = ["", "seeds", "size", "s/step", "training", f"to fidelity {fidelity:g}", "peak memory"]
    head += [FIGURES[name] for name in shown]
    lines = [head, ["---"] * len(head)]
    first = next(iter(groups.values()), [])
    if first and first[0].base:
        base = [_number(first[0].base.get(name)) for name in shown]
        lines.append(["base model", "", "", "", "", "", "", *base])
    for name, group in groups.items():
        lines.append([name, str(len(group)), *_costs(group, fidelity), *(_figure(group, one) for one in shown)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def summary(rows: Sequence[Row], fidelity: float) -> dict[str, dict[str, object]]:
    """Job → figure → mean, half width of the 95 % interval and number of seeds: the table for programs."""
    found: dict[str, dict[str, object]] = {}
    for name, group in by_name(rows).items():
        values: dict[str, list[float]] = {
            "weightsBytes": [row.weights_bytes for row in group],
            "secondsPerStep": [row.seconds_per_step for row in group],
            "seconds": [row.seconds for row in group],
            "peakMemoryBytes": [row.peak_memory_bytes for row in group],
            "secondsToFidelity": [time for row in group if (time := seconds_to(row, fidelity)) is not None],
        }
        for figure in sorted({figure for row in group for figure in row.figures}):
            values[figure] = [row.figures[figure] for row in group if figure in row.figures]
        found[name] = {
            key: {"mean": one.mean, "half": one.half, "seeds": one.n}
            for key, numbers in values.items()
            if numbers
            for one in [spread(numbers)]
        }
    return found


def size(count: float) -> str:
    """Bytes for people: 1000 of them are a kB."""
    return decimal(round(count))


def with_interval(one: Spread, text: Callable[[float], str]) -> str:
    """Mean ± half the interval; the mean alone for one seed."""
    return text(one.mean) if one.half is None else f"{text(one.mean)} ± {text(one.half)}"


def _costs(group: Sequence[Row], fidelity: float) -> list[str]:
    reached = [time for row in group if (time := seconds_to(row, fidelity)) is not None]
    until = "never" if not reached else with_interval(spread(reached), _seconds)
    if any(row.judged for row in group):
        until += "" if len(reached) == len(group) else f" ({len(reached)} of {len(group)})"
    else:
        until = MISSING
    return [
        with_interval(spread([row.weights_bytes for row in group]), size)
        if len({row.weights_bytes for row in group}) > 1
        else size(group[0].weights_bytes),
        with_interval(spread([row.seconds_per_step for row in group]), lambda value: f"{value:.3f}"),
        with_interval(spread([row.seconds for row in group]), _seconds),
        until,
        with_interval(spread([row.peak_memory_bytes for row in group]), size),
    ]


def _figure(group: Sequence[Row], name: str) -> str:
    values = [row.figures[name] for row in group if name in row.figures]
    return with_interval(spread(values), _number) if values else MISSING


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def conditions(rows: Sequence[Row], fidelity: float, notes: Mapping[str, str]) -> str:
    """What the table means and how it came about, in Markdown."""
    seeds = sorted({row.seed for row in rows})
    devices = ", ".join(sorted({f"{row.device}, torch {row.torch}" for row in rows}))
    said = "\n".join(f"- {key}: {value}" for key, value in notes.items())
    return (
        f"Training seeds {', '.join(map(str, seeds))}; mean ± half the 95 % interval over them (Student's t, which "
        "assumes that seeds scatter roughly normally; the same value from each seed gives ± 0 and is no certainty). "
        f"Device: {devices}. Time to fidelity {fidelity:g}: of training steps until the first judgement that reaches "
        "it; drawing and judging are not counted. Memory: resident, of the training process. Size: what it takes to "
        f"load what was trained.\n\n{said}\n"
    )
