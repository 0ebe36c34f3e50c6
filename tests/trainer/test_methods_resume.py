"""Each technique, stopped in the middle, ends with the bits of a training that was not: dropout, words kept at their
length, and matrices on text encoders included."""

from pathlib import Path

import pytest
import torch
from finetune_api import TrainingRun
from finetune_trainer.families import load_family
from finetune_trainer.methods import NoFiles, WholeParts, make_methods
from support.method_cases import METHODS, run_of
from support.training import Trained, make_run, train_once
from torch import Tensor

STEPS = 4
TRAINING = {"gradientAccumulationSteps": 2, "scheduler": {"name": "Cosine"}}
DROPPING: dict[str, dict[str, dict[str, object]]] = {
    "lora with dropout": {"lora": METHODS["lora"]["lora"] | {"dropout": 0.3}},
    "dora with dropout": {"lora": METHODS["dora"]["lora"] | {"dropout": 0.3}},
    "hypernetwork with dropout": {"hypernetwork": METHODS["hypernetwork"]["hypernetwork"] | {"dropout": 0.3}},
}


def run_for(case: str, **training: object) -> TrainingRun:
    if case in METHODS:
        return run_of(case, STEPS, training=TRAINING | training)
    (technique,) = DROPPING[case]
    values = {"steps": STEPS, "batchSize": 2, "learningRate": 1e-2} | TRAINING | training
    return make_run(technique, method=DROPPING[case], training=values)


def tensors(value: object) -> list[Tensor]:
    """All tensors somewhere in a result."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict | tuple | list):
        return [t for item in (value.values() if isinstance(value, dict) else value) for t in tensors(item)]
    return tensors(vars(value)) if hasattr(value, "__dataclass_fields__") else []


def left_by(family: object, outcome: Trained) -> list[Tensor]:
    """What is exported, however it is."""
    found = []
    for result in (method.result() for method in outcome.methods):
        if isinstance(result, WholeParts):
            found += [value for part in result.parts for value in family.parts[part].state_dict().values()]
        else:
            found += tensors(result)
    return found


@pytest.mark.parametrize("case", ["dreamBooth", "words", "pivotal", *DROPPING])
def test_stopped_and_gone_on(case: str, tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    family, whole = train_once(run_for(case), tiny_sd, pictures, tmp_path / "whole")
    calls = iter(range(2))
    _, stopped = train_once(run_for(case), tiny_sd, pictures, tmp_path / "torn", lambda: next(calls, None) is None)
    assert (stopped.step, stopped.interrupted) == (2, True)
    # the process that goes on has drawn other numbers before
    torch.manual_seed(99)
    again, finished = train_once(run_for(case), tiny_sd, pictures, tmp_path / "torn")
    assert finished.resumed_from_step == 2
    assert finished.losses == whole.losses
    ends, expected = left_by(again, finished), left_by(family, whole)
    assert len(ends) == len(expected) > 0
    assert all(torch.equal(end, other) for end, other in zip(ends, expected, strict=True))


@pytest.mark.parametrize("case", ["pivotal", "lora with dropout", "hypernetwork with dropout"])
def test_gradient_checkpointing_changes_nothing(case: str, tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    """What is dropped in the first forward pass is dropped in the second too."""
    _, plain = train_once(run_for(case), tiny_sd, pictures, tmp_path / "plain")
    _, thrifty = train_once(run_for(case, gradientCheckpointing=True), tiny_sd, pictures, tmp_path / "thrifty")
    assert plain.losses == pytest.approx(thrifty.losses, rel=1e-6)


@pytest.mark.parametrize("case", DROPPING)
def test_dropout_drops_while_training_and_not_when_drawing(
    case: str, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    plain = case.removesuffix(" with dropout")
    _, dropping = train_once(run_for(case), tiny_sd, pictures, tmp_path / "dropping")
    _, keeping = train_once(run_for(plain), tiny_sd, pictures, tmp_path / "keeping")
    assert dropping.losses[-1] != pytest.approx(keeping.losses[-1], rel=1e-5)
    family, fresh = load_family(tiny_sd, torch.device("cpu")), load_family(tiny_sd, torch.device("cpu"))
    for one, run in ((family, run_for(case)), (fresh, run_for(plain))):
        (method,) = make_methods(run.method, 0)
        method.install(one, NoFiles())
        method.load(dropping.methods[0].result())
    noise = torch.ones(1, 4, 8, 8)
    drawn = [one.draw(["sks dog"], [""], noise, 2, 2.0)[0].tobytes() for one in (family, family, fresh)]
    assert len(set(drawn)) == 1
