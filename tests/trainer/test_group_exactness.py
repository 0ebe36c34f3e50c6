"""Processes that train together do what one process does with their batches put together."""

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_api import TrainingRun
from finetune_trainer.device import device_of
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.families import load_family
from finetune_trainer.group.seat import Seat
from finetune_trainer.training.schedule import total_steps
from safetensors.torch import load
from support.duties import Scripted
from support.groups import Trained, in_group, optimize_in_group, train_as_group, train_in_group
from support.training import PRIOR, PROMPT, make_run

STEPS = 6
LOSS_TOLERANCE = 1e-5
"""Relative. Sums over processes are rounded in another order, and that is all."""
UPDATE_TOLERANCE = 1e-4
"""Length of the difference between the two results, relative to how far the training moved the weights: what
Adam makes of the same rounding, which it amplifies where a gradient is close to zero."""


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that have torch loaded already. The most that any test here needs, so that each gets one task."""
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as executor:
        yield executor


def run_for(technique: str, batch: int, accumulation: int, **training: object) -> TrainingRun:
    return make_run(
        technique,
        True,
        training={"steps": STEPS, "batchSize": batch, "gradientAccumulationSteps": accumulation, **training},
        dataset={"flip": True, "crop": "Random", "cropsPerPicture": 2},
        checkpoints={"everySteps": 2},
    )


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().flatten() for _, value in sorted(weights.items())])


def update(technique: str, trained: Trained, model: Path) -> torch.Tensor:
    """How far the training moved the weights. A LoRA starts from nothing but its own first values, which it keeps
    most of: its upper halves start at zero, and are all update."""
    if technique == "lora":
        (data,) = (data for name, data in trained.weights.items() if name.endswith("pytorch_lora_weights.safetensors"))
        return flat({name: value for name, value in load(data).items() if "lora_B" in name or "lora.up" in name})
    (data,) = (data for name, data in trained.weights.items() if "unet" in name and name.endswith(".safetensors"))
    after = load(data)
    before = load_family(model, torch.device("cpu")).parts["unet"].state_dict()
    return flat(after) - flat({name: before[name] for name in after})


@pytest.mark.parametrize(("technique", "accumulation"), [("lora", 1), ("lora", 2), ("dreamBooth", 2)])
def test_two_processes_equal_one_with_twice_the_batch(
    technique: str, accumulation: int, pool: ProcessPoolExecutor, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    half = run_for(technique, 1, accumulation)
    first, second = train_as_group(pool, half, 2, tiny_sd, pictures, tmp_path / "group")
    whole = train_in_group(run_for(technique, 2, accumulation), None, tiny_sd, pictures, tmp_path / "alone")

    assert first.weights == second.weights, "the copies stay the same to the bit"
    assert first.losses == second.losses
    np.testing.assert_allclose(first.losses, whole.losses, rtol=LOSS_TOLERANCE)
    ours, theirs = update(technique, first, tiny_sd), update(technique, whole, tiny_sd)
    assert theirs.norm() > 0
    assert (ours - theirs).norm() <= UPDATE_TOLERANCE * theirs.norm()
    assert second.saved == (), "checkpoints are rank 0's alone"
    assert first.saved == whole.saved == (2, 4, 6)


def test_two_processes_are_two_micro_batches_to_the_bit(
    pool: ProcessPoolExecutor, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    """What is left of a difference above is that of a picture computed alone or beside another one."""
    group = train_as_group(pool, run_for("lora", 1, 1), 2, tiny_sd, pictures, tmp_path / "group")
    alone = train_in_group(run_for("lora", 1, 2), None, tiny_sd, pictures, tmp_path / "alone")
    assert [one.weights for one in group] == [alone.weights] * 2


def test_a_group_that_was_stopped_ends_with_the_same_bytes(
    pool: ProcessPoolExecutor, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    """Three processes, because two numbers have only one sum. One alone is asked to stop, and it is not the first."""
    run = run_for("lora", 1, 2)
    undisturbed = train_as_group(pool, run, 3, tiny_sd, pictures, tmp_path / "whole")
    stopped = train_as_group(pool, run, 3, tiny_sd, pictures, tmp_path / "torn", stops_after={2: 3})
    assert [(one.interrupted, len(one.losses)) for one in stopped] == [(True, 3)] * 3, "all after the same step"
    assert stopped[0].saved == (2, 3)
    resumed = train_as_group(pool, run, 3, tiny_sd, pictures, tmp_path / "torn")
    assert [one.resumed_from for one in resumed] == [3] * 3
    assert [one.losses for one in resumed] == [undisturbed[0].losses] * 3
    assert [one.weights for one in resumed] == [undisturbed[0].weights] * 3


@pytest.mark.parametrize("luck", [4])
def test_a_group_that_was_killed_ends_with_the_same_bytes(
    luck: int, pool: ProcessPoolExecutor, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    """With everything that a checkpoint must hold: accumulation, averages, dropout, caches, the best weights."""
    lora = {"prompt": PROMPT, "rank": 4, "dropout": 0.3, "priorPreservation": PRIOR}
    run = make_run(
        method={"lora": lora},
        training={"steps": 8, "gradientAccumulationSteps": 2, "ema": True, "learningRate": 1e-2},
        dataset={"flip": True, "crop": "Random", "cropsPerPicture": 2},
        checkpoints={"everySteps": 2},
    )
    duties = [Scripted(every=2, better=(2, 4))]
    whole = train_as_group(pool, run, 2, tiny_sd, pictures, tmp_path / "whole", duties=duties)
    chance = random.Random(luck)
    victim, step = chance.choice((0, 1)), chance.randint(5, 7)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as doomed, pytest.raises(BrokenProcessPool):
        train_as_group(doomed, run, 2, tiny_sd, pictures, tmp_path / "torn", dies_at={victim: step}, duties=duties)
    resumed = train_as_group(pool, run, 2, tiny_sd, pictures, tmp_path / "torn", duties=duties)
    saved = 6 if step == 7 else 4
    assert [one.resumed_from for one in resumed] == [saved] * 2
    assert [one.losses for one in resumed] == [whole[0].losses] * 2
    assert [one.weights for one in resumed] == [whole[0].weights] * 2
    assert [one.best_step for one in (*whole, *resumed)] == [4] * 4


def test_each_optimizer_goes_on_in_all_processes_from_the_state_of_one(pool: ProcessPoolExecutor) -> None:
    first, second = in_group(pool, 2, optimize_in_group, ("AdamW", "AdamW8bit", "Adafactor", "Prodigy"), 40)
    assert first == second
    for whole, torn in first.values():
        assert whole == torn, "losses and averaged weights"
        assert len(set(whole)) == 41


def test_a_single_process_knows_nothing_of_groups(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    train_in_group(make_run(training={"steps": 1}), None, tiny_sd, pictures, tmp_path)
    assert not torch.distributed.is_initialized()
    unneeded = (
        "finetune_trainer.group.torch_team",
        "finetune_trainer.group.supervisor",
        "finetune_trainer.engines.replicated",
    )
    assert [name for name in unneeded if name in sys.modules] == []


def test_each_process_needs_a_gpu_of_its_own_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    seat = Seat(rank=2, size=4, local_rank=2, generation="g", store_host="127.0.0.1", store_port=1)
    with pytest.raises(ConfigurationError, match=r"processesPerNode is more than 2, but there are 2 GPUs"):
        device_of(seat)


def test_a_gpu_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all that torch asks of a device can be asked of one without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert device_of(None) == torch.device("cuda", 1)


def test_an_epoch_is_shared_by_all_processes() -> None:
    spec = make_run(training={"steps": None, "epochs": 3, "batchSize": 2}).training
    assert [total_steps(spec, 8, processes) for processes in (1, 2, 4)] == [12, 6, 3]
