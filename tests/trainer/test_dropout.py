"""Dropout is drawn from the seed of each micro-batch, and from nothing else."""

from __future__ import annotations

import torch
from finetune_api.engine import EngineSpec
from finetune_trainer.engines import make_engine
from finetune_trainer.methods import ParameterGroup
from support.toys import Regression, batch_of
from support.training import make_run


def losses(seeds: list[int], noise: int = 0) -> list[float]:
    """Of a second step after one with these micro-batches, all with the same inputs."""
    found = []
    for seed in seeds:
        module = Regression(dropout=0.5).train()
        engine = make_engine(EngineSpec(), torch.device("cpu"))
        engine.prepare(module, [ParameterGroup("all", dict(module.named_parameters()))], make_run().training, [])
        torch.manual_seed(noise)
        engine.step([batch_of(seed=seed), batch_of(seed=seed + 1)], 1.0)
        found.append(float(engine.step([batch_of(seed=seed), batch_of(seed=seed + 1)], 1.0).loss))
    return found


def test_the_same_seed_drops_the_same_and_another_one_does_not() -> None:
    first, again, other = losses([5, 5, 7])
    assert first == again != other
    assert losses([5], noise=1) == [first], "whatever others drew before"


def test_nobody_elses_draws_change() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    module = Regression(dropout=0.5).train()
    engine = make_engine(EngineSpec(), torch.device("cpu"))
    engine.prepare(module, [ParameterGroup("all", dict(module.named_parameters()))], make_run().training, [])
    engine.step([batch_of(seed=5)], 1.0)
    assert torch.equal(torch.rand(3), expected)
