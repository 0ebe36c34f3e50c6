"""What is measured of one training, and where it is kept: one line of rows.jsonl."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune_api import TrainingRun
from finetune_api.progress import Sha256
from pydantic import ValidationError

from finetune_trainer.errors import DataError
from finetune_trainer.publish.manifest import ManifestModel

ROWS = "rows.jsonl"


class OnTheWay(ManifestModel):
    """A judgement during the training."""

    step: int
    seconds: float
    """Training time until then: all steps so far, without drawing and judging."""
    fidelity: float | None = None
    """None where the prompts allow no such figure."""


class Row(ManifestModel):
    """One technique with one training seed."""

    name: str
    """Of the FineTuneJob."""
    technique: str
    seed: int
    key: Sha256
    """Of the settings: a row of other settings does not count."""
    weights_bytes: int
    """What it takes to load what was trained."""
    steps: int
    seconds: float
    """Time of all steps together."""
    seconds_per_step: float
    """Median."""
    peak_memory_bytes: int
    """Of the training process, resident."""
    gpu_memory_bytes: int | None = None
    """Peak of what torch allocated there."""
    base: dict[str, float]
    """Name → figure of the base model."""
    figures: dict[str, float]
    """Name → figure of the weights that were published."""
    judged: tuple[OnTheWay, ...] = ()
    device: str
    torch: str
    results: str
    """Folder of the results, relative to the comparison's."""


def key_of(run: TrainingRun) -> str:
    """SHA-256 of everything that decides what is trained and judged; not of where it is written, nor of its name."""
    whole = run.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"output": {"uri"}, "identity": True})
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def read_rows(folder: Path) -> list[Row]:
    """All rows in the folder, in the order in which they were measured; none when there is no file.

    Raises:
        DataError: a line in the middle is no row. (A last line without its end is one that was being written.)
    """
    path = folder / ROWS
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text("utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            raise DataError(
                f"{path}:{number} is no row of a comparison ({error.errors()[0]['msg']}); remove the line, and it is "
                "measured anew"
            ) from error
    return rows


def append_row(folder: Path, row: Row) -> None:
    """Adds a line. One that was only half written before is replaced."""
    path = folder / ROWS
    whole = path.read_text("utf-8").rpartition("\n")[0] if path.is_file() else ""
    text = (f"{whole}\n" if whole else "") + row.model_dump_json(by_alias=True, exclude_none=True) + "\n"
    part = path.with_suffix(".part")
    part.write_text(text, "utf-8")
    part.replace(path)


def seconds_to(row: Row, fidelity: float) -> float | None:
    """Training time until the first judgement with at least `fidelity`; None when there was none."""
    return next((one.seconds for one in row.judged if (one.fidelity or 0.0) >= fidelity), None)


def by_name(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    """Rows of each job, in the order of first appearance, by seed."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.name, []).append(row)
    return {name: sorted(group, key=lambda row: row.seed) for name, group in found.items()}
