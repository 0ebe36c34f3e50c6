"""Each technique, killed at drawn steps again and again, ends with the bits of a training that was not: whatever it
trains, its optimizer, its averages and what it drops are all in the checkpoint or follow from the step."""

import random
from pathlib import Path

import pytest
import torch
from finetune_api import TrainingRun
from finetune_trainer.families import Family
from support.method_cases import METHODS
from support.power_cut import KillsAt, PowerCut
from support.training import PRIOR, Memory, make_run, train_once
from torch import Tensor

STEPS, SAVED_EVERY = 8, 3
DROPOUT = {"dropout": 0.3}
CASES: dict[str, dict[str, dict[str, object]]] = {
    "dreamBooth": {"dreamBooth": METHODS["dreamBooth"]["dreamBooth"] | {"priorPreservation": PRIOR}},
    "lora": {"lora": METHODS["lora"]["lora"] | DROPOUT},
    "dora": {"lora": METHODS["dora"]["lora"] | DROPOUT},
    "words": METHODS["words"],
    "pivotal": METHODS["pivotal"],
    "hypernetwork": {"hypernetwork": METHODS["hypernetwork"]["hypernetwork"] | DROPOUT},
}
Ended = tuple[dict[str, Tensor], tuple[float, ...]]


def run_for(case: str) -> TrainingRun:
    (technique,) = CASES[case]
    training = {
        "steps": STEPS,
        "batchSize": 1,
        "gradientAccumulationSteps": 2,
        "learningRate": 1e-2,
        "ema": True,
        "scheduler": {"name": "Cosine", "warmupSteps": 2},
        "optimizer": {"name": "AdamW8bit"},
        "loss": {"weighting": "MinSnr", "noiseOffset": 0.05},
    }
    dataset = {"flip": True, "crop": "Random", "cropsPerPicture": 2, "captions": {"dropout": 0.2}}
    checkpoints = {"everySteps": SAVED_EVERY}
    return make_run(technique, method=CASES[case], training=training, dataset=dataset, checkpoints=checkpoints)


def left_by(family: Family) -> dict[str, Tensor]:
    """All that could have been trained; what a technique added is part of it."""
    return {
        f"{part}.{name}": value.detach()
        for part, module in family.parts.items()
        for name, value in module.named_parameters()
    }


@pytest.fixture(scope="module")
def undisturbed(tiny_sd: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """What each case ends with."""
    found: dict[str, Ended] = {}
    for case in CASES:
        family, outcome = train_once(run_for(case), tiny_sd, pictures, tmp_path_factory.mktemp("whole"))
        found[case] = left_by(family), outcome.losses
    return found


@pytest.mark.parametrize("luck", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_killed_at_drawn_steps(
    case: str, luck: int, undisturbed: dict[str, Ended], tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    chance = random.Random(f"{case}, {luck}")
    # the second death comes after a resume, and so after a checkpoint of a resumed training
    for fatal in (chance.randint(1, STEPS - 2), chance.randint(STEPS - 2, STEPS)):
        torch.manual_seed(fatal)  # what the process has drawn before is its own
        killer = KillsAt(fatal)
        with pytest.raises(PowerCut):
            train_once(run_for(case), tiny_sd, pictures, tmp_path, listener=killer)
    last = Memory()
    family, outcome = train_once(run_for(case), tiny_sd, pictures, tmp_path, listener=last)
    assert last.resumed_from == (fatal - 1) // SAVED_EVERY * SAVED_EVERY
    weights, losses = undisturbed[case]
    assert outcome.losses == losses
    ends = left_by(family)
    assert ends.keys() == weights.keys()
    assert [name for name, value in ends.items() if not torch.equal(value, weights[name])] == []
