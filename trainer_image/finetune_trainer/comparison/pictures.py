"""The contact sheet of a comparison: a row for each job and prompt, a picture for each training seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_api import TrainingRun
from PIL import Image
from pydantic import ValidationError

from finetune_trainer.comparison.rows import Row, by_name
from finetune_trainer.errors import DataError
from finetune_trainer.evaluation.wording import drawn_prompts
from finetune_trainer.generation.sheets import Print, sheet

PROMPTS = 2
"""Of the prompts that were drawn the first two: by custom the subject and what it must not leak into."""


def comparison_sheet(rows: Sequence[Row], folder: Path) -> Image.Image:
    """All jobs on one sheet; the pictures have the same first noise everywhere.

    Raises:
        DataError: the results of a row are not there any more.
    """
    prints = []
    for name, group in by_name(rows).items():
        for prompt in range(PROMPTS):
            for row in group:
                path = folder / row.results / "pictures/after" / f"prompt-{prompt}-seed-0.png"
                if path.is_file():
                    heading = f"{name}: {_prompts(row, folder)[prompt]}"
                    prints.append(Print.of(heading, f"training seed {row.seed}", Image.open(path)))
    return sheet("What each technique made of the same pictures", prints)


def _prompts(row: Row, folder: Path) -> tuple[str, ...]:
    """What was drawn, in the order of the pictures' names."""
    path = folder / row.results / "run.json"
    try:
        run = TrainingRun.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); remove the line of {row.name}, seed {row.seed} from rows.jsonl, and it "
            "is measured anew"
        ) from error
    return drawn_prompts(run)
