"""The study of weights in bf16 compares one thing, and its table says what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_api.training_run import ResolvedTraining
from finetune_trainer.comparison.rows import Row
from finetune_trainer.engines import adamw_8bit
from finetune_trainer.engines.rounding import LOW_BITS

from benchmarks.trainer.weights import NEAREST, WEIGHTS, _rounding_to_the_nearest, runs_of, table

ROOT = Path(__file__).parents[2]


def test_trainings_differ_in_their_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    runs = runs_of(800, 1e-4)
    assert [run.training.weights_dtype for run in runs] == list(WEIGHTS.values())
    assert len({run.model_copy(update={"identity": runs[0].identity, "training": None}).to_json() for run in runs}) == 1
    settings = [run.training.model_dump(by_alias=True, exclude={"weights_dtype"}, exclude_none=True) for run in runs]
    assert settings[0] == settings[1] == settings[2]
    for run in runs:
        # what is set past the models' own checks passes them
        ResolvedTraining.model_validate(run.training.model_dump(by_alias=True, exclude_none=True))


def test_one_of_them_rounds_to_the_nearest() -> None:
    # a quarter of the way to the next number
    values, low = torch.tensor([1 + 2**-9]), torch.tensor([LOW_BITS - 1], dtype=torch.int32)
    with _rounding_to_the_nearest(True):
        assert adamw_8bit.rounded_by_chance(values, low).item() == 1
    assert adamw_8bit.rounded_by_chance(values, low).item() == 1 + 2**-7


def row(name: str, seed: int, loss: float, fidelity: float) -> Row:
    return Row(
        name=name, technique="dreamBooth", seed=seed, key="0" * 64, weights_bytes=1, steps=800, seconds=1,
        seconds_per_step=1, peak_memory_bytes=1, base={"trainingLoss": 0.5}, device="cpu", torch="2",
        figures={"trainingLoss": loss, "fidelity": fidelity}, results="results",
    )  # fmt: skip


def test_the_table_has_a_line_for_each_and_says_what_is_missing() -> None:
    lines = table([row("fp32", 0, 0.1, 1.0), row("fp32", 1, 0.3, 1.0), row(NEAREST, 0, 0.4, 0.25)]).splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| base model", "", "0.5000"],
        ["| fp32", "2", "0.2000 ± 1.2706"],
        ["| bf16-nearest", "1", "0.4000"],
    ]
    assert lines[4].split(" | ")[3] == "–", "class loss"
