"""On a GPU a captured step is the eager one, changes with what changes, and never makes the host wait."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.engines import Engine
from finetune_trainer.engines.captured import CapturedEngine
from finetune_trainer.engines.compiled import CompiledEngine
from finetune_trainer.engines.eager import EagerEngine
from support.method_cases import METHODS
from support.samples import bucketed, make_shapes
from support.stepping import Stepping, numbers_of, stepping
from support.training import make_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CUDA = torch.device("cuda")
RATE = 2**-9
STEPS = 4


def taken(engine: Engine, case: str, model: Path, pictures: Path, **training: object) -> Stepping:
    ((technique, settings),) = METHODS[case].items()
    values = {"learningRate": RATE, "batchSize": 2, "ema": True} | training
    return stepping(make_run(technique, method={technique: settings}, training=values), engine, model, pictures, "cuda")


def losses_of(one: Stepping, first: int = 0, steps: int = STEPS) -> list[float]:
    """Read after the last step, as a loop reads them that is not to wait."""
    results = [one.step(number, 0.5 ** (number % 3)) for number in range(first, first + steps)]
    return [float(result.loss) for result in results]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", METHODS)
def test_losses_are_those_of_the_eager_engine(case: str, precision: str, tiny_sd: Path, pictures: Path) -> None:
    expected = losses_of(taken(EagerEngine(CUDA), case, tiny_sd, pictures, precision=precision))
    found = losses_of(taken(CapturedEngine(CUDA), case, tiny_sd, pictures, precision=precision))
    assert found == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 2e-2)
    assert len(set(found)) == STEPS


@pytest.mark.parametrize("accumulation", [1, 3])
def test_shapes_take_turns(accumulation: int, tiny_sd: Path, tmp_path: Path) -> None:
    """From one pool of memory, in any order."""
    run, folder = bucketed(1, accumulation), make_shapes(tmp_path)
    one, other = (
        stepping(run, engine, tiny_sd, folder, "cuda") for engine in (EagerEngine(CUDA), CapturedEngine(CUDA))
    )
    assert len({tuple(batch.noise.shape) for step in range(8) for batch in one.samples.step(step)}) > 2
    assert losses_of(other, steps=8) == pytest.approx(losses_of(one, steps=8), rel=2e-2)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_no_step_makes_the_host_wait(accumulation: int, tiny_sd: Path, pictures: Path) -> None:
    one = taken(CapturedEngine(CUDA), "dreamBooth", tiny_sd, pictures, gradientAccumulationSteps=accumulation)
    batches = [one.samples.step(number) for number in range(6)]
    for number in range(2):
        one.engine.step(batches[number], 1.0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [one.engine.step(batches[number], 0.5) for number in range(2, 6)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(bool(torch.isfinite(result.loss)) and not bool(result.skipped) for result in results)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_poisoned_step_changes_nothing(precision: str, tiny_sd: Path, pictures: Path) -> None:
    one = taken(CapturedEngine(CUDA), "lora", tiny_sd, pictures, precision=precision)
    while one.step(0).skipped:
        continue  # the scale of fp16 begins too large
    before = numbers_of(one.engine.state())
    assert one.poisoned(1).skipped
    after = numbers_of(one.engine.state())
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert not one.step(2).skipped
    after = numbers_of(one.engine.state())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_dropout_is_seeded_by_the_step(tiny_sd: Path, pictures: Path) -> None:
    """A graph draws anew in each repetition, what the eager engine draws."""
    settings = {"prompt": "sks dog", "rank": 4, "dropout": 0.5}
    run = make_run("lora", method={"lora": settings}, training={"learningRate": 0.1, "precision": "fp32"})
    found = [
        losses_of(stepping(run, engine, tiny_sd, pictures, "cuda"))
        for engine in (EagerEngine(CUDA), CapturedEngine(CUDA), CapturedEngine(CUDA))
    ]
    assert found[1] == found[2]
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_drawing_in_between_disturbs_nothing(tiny_sd: Path, pictures: Path) -> None:
    """Pictures take memory, see whole weights, and averages; the graphs go on with theirs."""
    plain, disturbed = (taken(CapturedEngine(CUDA), "lora", tiny_sd, pictures) for _ in range(2))
    expected = losses_of(plain)
    found = losses_of(disturbed, steps=2)
    with disturbed.engine.averaged():
        weights = disturbed.family.parts["unet"].parameters()
        assert {weight.dtype for weight in weights} == {torch.float32}
        torch.empty(2**28, device="cuda").fill_(float("nan"))
    found += losses_of(disturbed, first=2, steps=STEPS - 2)
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_compiled_denoiser_inside_of_a_graph(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    expected = losses_of(taken(EagerEngine(CUDA), "lora", tiny_sd, pictures))
    assert losses_of(taken(CompiledEngine(CUDA, tmp_path), "lora", tiny_sd, pictures)) == pytest.approx(
        expected, rel=2e-2
    )
    assert len(list((tmp_path / "compiled").iterdir())) == 1
