"""A technique never asks which engine runs it, an engine never asks which technique it runs."""

import re
from pathlib import Path

import finetune_trainer
import pytest

ROOT = Path(finetune_trainer.__file__).parent
METHODS = ("lora", "dream_?booth", "textual_?inversion", "hyper_?network")
ENGINES = ("eager", "deepspeed", "zero_?[123]", "\\bddp\\b", "accelerate", "torch\\.distributed")


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("engines", METHODS),
        ("planning", METHODS),
        ("checkpoints", METHODS),
        ("data", METHODS),
        ("training", METHODS),
        ("methods", ENGINES),
        ("families", METHODS + ENGINES),
        ("methods", ("boto", "prometheus", "finetune_trainer.publish", "finetune_trainer.telemetry")),
        ("engines", ("boto", "prometheus", "finetune_trainer.publish", "finetune_trainer.telemetry")),
    ],
)
def test_what_a_room_does_not_know(folder: str, words: tuple[str, ...]) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    pattern = re.compile("|".join(words), re.IGNORECASE)
    strange = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert strange == []
