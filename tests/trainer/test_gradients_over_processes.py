"""However a step is cut into micro-batches and processes, their gradients add up to those of the whole step. With 3
pictures passes end in the middle of batches; class pictures and weights that depend on the timestep are there too."""

from pathlib import Path

import pytest
import torch
from finetune_trainer.families import Family, load_family
from finetune_trainer.methods import NoFiles, make_methods
from finetune_trainer.training.step_module import StepModule
from support.samples import Seat, samples_of
from support.training import make_run

STEP = 3


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes"),
    [(1, 1, 4), (1, 1, 5), (2, 1, 2), (1, 2, 2), (5, 1, 2), (1, 5, 2), (2, 2, 3)],
)
def test_the_parts_add_up_to_the_whole(
    batch: int, accumulation: int, processes: int, tiny_sd: Path, pictures: Path
) -> None:
    family = load_family(tiny_sd, torch.device("cpu"))
    whole_loss, whole = loss_and_gradient(family, pictures, batch * accumulation * processes, 1, 1)
    loss, gradient = loss_and_gradient(family, pictures, batch, accumulation, processes)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert whole.norm() > 0
    assert (gradient - whole).norm() <= 1e-5 * whole.norm()


def test_a_whole_step_is_the_mean_over_its_samples(tiny_sd: Path, pictures: Path) -> None:
    """One sample at a time, each with the weight that the definition gives it."""
    family = load_family(tiny_sd, torch.device("cpu"))
    loss, _ = loss_and_gradient(family, pictures, 5, 1, 1)
    run = make_run("dreamBooth", True, training={"batchSize": 5, "loss": {"weighting": "MinSnr"}})
    (batch,) = samples_of(run, family, pictures, classes=pictures).step(STEP)
    with torch.no_grad():
        _, losses = StepModule(family, make_methods(run.method, 0)[0].needs, run.training.loss)(batch)
    gammas = 5 / family.snr(batch.timesteps).clamp(min=5)
    assert len(losses) == 10
    expected = (losses[:5] * gammas[:5]).mean() + 0.7 * (losses[5:] * gammas[5:]).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-6)


def loss_and_gradient(
    family: Family, pictures: Path, batch: int, accumulation: int, processes: int
) -> tuple[float, torch.Tensor]:
    """Of a whole step, all processes' shares together; any pictures will do as class pictures."""
    training = {"batchSize": batch, "gradientAccumulationSteps": accumulation, "loss": {"weighting": "MinSnr"}}
    run = make_run("dreamBooth", True, training=training)
    (method,) = make_methods(run.method, 0)
    (group,) = method.install(family, NoFiles())
    module = StepModule(family, method.needs, run.training.loss)
    module.zero_grad()
    total = 0.0
    for rank in range(processes):
        samples = samples_of(run, family, pictures, team=Seat(rank, processes), classes=pictures)
        for micro_batch in samples.step(STEP):
            loss, _ = module(micro_batch)
            loss.backward()
            total += loss.item()
    gradients = [value.grad.flatten().clone() for value in group.parameters.values() if value.grad is not None]
    assert len(gradients) == len(group.parameters)
    return total, torch.cat(gradients)
