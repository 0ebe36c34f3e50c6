"""What is known of a training before its engine is chosen, and that the loop does what was planned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.planning import gathering
from finetune_trainer.planning.gathering import gather_facts
from finetune_trainer.planning.memory import Description
from finetune_trainer.planning.plans import RESERVED, Facts
from support.prepared import prepared
from support.training import Memory, make_run, train_once

CPU = torch.device("cpu")
RUN = make_run("dreamBooth", training={"steps": 3, "batchSize": 4}, dataset={"resolution": 64})
MANY = 64 * 2**30


def facts_of(model: Path, pictures: Path) -> Facts:
    made = prepared(RUN, model, pictures)
    parts = made.family.parts.values()
    # latents of half a side, and others twice as large
    shapes = [(32, 32), (64, 32)]
    example = made.samples.step(0)
    return gather_facts(RUN.engine, made.module, parts, made.groups, RUN.training, example, 3, shapes, CPU, 1)


def test_the_facts(tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts_of(tiny_sd, pictures).described is None, "a CPU's memory is not planned"
    monkeypatch.setattr(gathering, "memory_of", lambda device: MANY)
    facts = facts_of(tiny_sd, pictures)
    assert (facts.samples, facts.steps, facts.shapes, facts.latents, facts.memory) == (4, 3, 2, 2048, MANY)
    assert facts.described is not None
    assert facts.numbers == facts.described.numbers, "all of the denoiser is trained"
    assert (facts.capturable, facts.capturable_twice) == (True, True)


def test_what_is_looked_at_may_not_fit_either(tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> Description:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gathering, "memory_of", lambda device: MANY)
    monkeypatch.setattr(gathering, "describe", full)
    assert facts_of(tiny_sd, pictures).described is None


@pytest.mark.parametrize(
    ("megabytes", "does"),
    [
        (64, "Eager"),
        (32, "Eager, activations computed twice"),
        (14, "Eager, activations computed twice, micro-batches cut in 2"),
    ],
)
def test_the_loop_does_what_was_planned(
    megabytes: int, does: str, tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = train_once(RUN, tiny_sd, pictures, tmp_path / "expected")
    monkeypatch.setattr(gathering, "memory_of", lambda device: RESERVED + megabytes * 2**20)
    listener = Memory()
    _, outcome = train_once(RUN, tiny_sd, pictures, tmp_path / "planned", listener=listener)
    (told,) = listener.engines
    assert (told.kind, told.does) == ("Eager", does)
    assert told.predicted_bytes is not None
    assert told.predicted_bytes * 1.1 < megabytes * 2**20
    assert outcome.losses == pytest.approx(expected.losses, rel=1e-4)
