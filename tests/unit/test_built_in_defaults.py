"""How much is enough to say something, where nobody says how much: figures from 64 pictures, techniques from five
seeds, and learning rates that the field found."""

from __future__ import annotations

import re

import pytest
from finetune_api import FineTuneJobSpec, RunIdentity, resolve
from finetune_api.outputs import JudgementSpec
from finetune_trainer.cli import app
from typer.testing import CliRunner


def test_a_figure_comes_from_64_pictures() -> None:
    assert JudgementSpec().images_per_prompt == 64


def test_training_goes_to_its_end_unless_patience_is_asked_for() -> None:
    assert JudgementSpec().patience is None


def test_techniques_are_compared_over_five_seeds() -> None:
    shown = re.sub(r"[│\s]+", " ", CliRunner().invoke(app, ["compare", "--help"]).output)
    assert re.search(r"--seeds .{0,60}Training seeds .{0,60}default: 5", shown), shown


@pytest.mark.parametrize(
    ("method", "steps", "rate"),
    [
        ({"lora": {"prompt": "sks dog"}}, 500, 0.0001),
        ({"dreamBooth": {"prompt": "sks dog"}}, 400, 0.000005),
        ({"textualInversion": {"tokens": [{"placeholder": "<toy>"}]}}, 3000, 0.0005),
        ({"hypernetwork": {"prompt": "sks dog"}}, 1000, 0.00001),
    ],
)
def test_without_configuration(method: dict[str, object], steps: int, rate: float) -> None:
    """docs/decisions/0003; the same for every base model, a tiny one included."""
    for uri in ("hf://stable-diffusion-v1-5/stable-diffusion-v1-5", "builtin://tiny-shapes"):
        spec = {
            "baseModel": {"uri": uri},
            "method": method,
            "dataset": {"uri": "s3://bucket/pictures"},
            "output": {"uri": "s3://bucket/output"},
        }
        run = resolve(FineTuneJobSpec.model_validate(spec), None, RunIdentity(name="a", namespace="b", uid="c"))
        assert (run.training.steps, run.training.learning_rate) == (steps, rate)
