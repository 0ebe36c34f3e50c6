"""On a GPU a captured step is the eager one, changes with what changes, and never makes the host wait.

Where algorithms are deterministic it is so to the bit. Elsewhere float32 may differ by what sums in another order
differ, 1e-4 of a loss, and half precision by what that may round another way, 2e-2.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from finetune_trainer.data.ahead import Ahead
from finetune_trainer.data.samples import Batch
from finetune_trainer.engines import Engine
from finetune_trainer.engines.captured import CapturedEngine
from finetune_trainer.engines.compiled import CompiledEngine
from finetune_trainer.engines.copies import Snapshot
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.recording import CudaGraphs, RecordingFailed
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


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Needs CUBLAS_WORKSPACE_CONFIG, which cuBLAS looks for when it starts: tests/trainer/conftest.py sets it."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", METHODS)
def test_steps_are_those_of_the_eager_engine_to_the_bit(
    case: str, precision: str, accumulation: int, deterministic: None, tiny_sd: Path, pictures: Path
) -> None:
    """Weights, moments and averages too. A rate of 2⁻⁹ is the same number in float32."""
    settings: dict[str, object] = {"precision": precision, "gradientAccumulationSteps": accumulation}
    one, other = (taken(kind(CUDA), case, tiny_sd, pictures, **settings) for kind in (EagerEngine, CapturedEngine))
    assert losses_of(other) == losses_of(one)
    expected, found = numbers_of(one.engine.state()), numbers_of(other.engine.state())
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


@pytest.mark.parametrize("half_way", [EagerEngine, CapturedEngine])
def test_it_goes_on_from_a_checkpoint(
    half_way: Callable[[torch.device], EagerEngine], deterministic: None, tiny_sd: Path, pictures: Path
) -> None:
    """One's own or the eager engine's; also one that is loaded over recordings, which read what was there before."""
    expected = losses_of(taken(CapturedEngine(CUDA), "lora", tiny_sd, pictures))
    before = taken(half_way(CUDA), "lora", tiny_sd, pictures)
    assert losses_of(before, steps=2) == expected[:2]
    again = taken(CapturedEngine(CUDA), "lora", tiny_sd, pictures)
    losses_of(again, steps=1)
    again.engine.load(before.engine.state())
    assert losses_of(again, first=2, steps=STEPS - 2) == expected[2:]


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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("case", METHODS)
def test_nothing_that_a_recording_reads_is_let_go(
    case: str, precision: str, tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch sees it, before each repetition: a graph holds addresses and no tensors."""
    monkeypatch.setattr(torch.cuda, "graph", partial(torch.cuda.graph, check_input_liveness=True))
    one = taken(CapturedEngine(CUDA), case, tiny_sd, pictures, precision=precision)
    found = losses_of(one, steps=2)
    with one.engine.averaged():
        one.engine.weights()
    with Snapshot(CUDA) as snapshot:
        state = one.engine.state()
    found += losses_of(one, first=2, steps=2)
    snapshot.wait()
    assert state.weights.keys() == one.engine.weights().keys()
    assert len(set(found)) == len(found)


def test_a_compiled_denoiser_inside_of_a_graph(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    expected = losses_of(taken(EagerEngine(CUDA), "lora", tiny_sd, pictures))
    assert losses_of(taken(CompiledEngine(CUDA, tmp_path), "lora", tiny_sd, pictures)) == pytest.approx(
        expected, rel=2e-2
    )
    assert len(list((tmp_path / "compiled").iterdir())) == 1


def reserved_by(steps: int, model: Path, folder: Path, accumulation: int = 1) -> int:
    """Bytes that torch holds after so many steps with pictures of several shapes."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    run = bucketed(4, accumulation, resolution=512, buckets={"minResolution": 448, "maxResolution": 576, "step": 64})
    one = stepping(run, CapturedEngine(CUDA), model, folder, "cuda")
    losses_of(one, steps=steps)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved() - before


def test_further_shapes_take_hardly_more_memory(tiny_sd: Path, tmp_path: Path) -> None:
    """They are rehearsed where the others were recorded."""
    folder = make_shapes(tmp_path)
    assert reserved_by(8, tiny_sd, folder) < 1.5 * reserved_by(1, tiny_sd, folder)


def test_room_is_made_and_taken_again(deterministic: None, tiny_sd: Path, pictures: Path) -> None:
    expected = losses_of(taken(CapturedEngine(CUDA), "dreamBooth", tiny_sd, pictures))
    one = taken(CapturedEngine(CUDA), "dreamBooth", tiny_sd, pictures)
    found = losses_of(one, steps=2)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    assert one.engine.make_room()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < held
    assert found + losses_of(one, first=2, steps=STEPS - 2) == expected


class BreakingOff(CudaGraphs):
    """A recorder in whose first recording something is done that breaks it off."""

    def __init__(self, what: Callable[[], object]) -> None:
        super().__init__(CUDA)
        self.what = what

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        def breaking() -> None:
            work()
            self.what()

        return super().record(breaking)


def in_use() -> int:
    """Bytes, those included that torch waits for another stream to be done with."""
    return int(torch.cuda.memory_stats()["active_bytes.all.current"])


def asks() -> object:
    return torch.ones(1, device="cuda").item()


def takes_all() -> object:
    return torch.empty(2**50, dtype=torch.uint8, device="cuda")


def stops() -> object:
    raise ValueError("enough")


@pytest.mark.parametrize("what", [asks, takes_all, stops])
def test_after_a_recording_that_broke_off_all_is_as_before(
    what: Callable[[], object], deterministic: None, tiny_sd: Path, pictures: Path
) -> None:
    """Another engine goes on in the same process, recording or not, and memory is given back."""
    expected = losses_of(taken(EagerEngine(CUDA), "lora", tiny_sd, pictures))
    one = taken(CapturedEngine(CUDA, BreakingOff(what)), "lora", tiny_sd, pictures)
    before = numbers_of(one.engine.state())
    with pytest.raises(RecordingFailed):
        one.step(0)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    after = numbers_of(one.engine.state())
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    del one
    gc.collect()
    # what a copy to the host used on another stream is given back only where no recording is believed to go on
    held = in_use()
    used = torch.empty(2**26, device="cuda")
    used.record_stream(torch.cuda.Stream())
    del used
    torch.cuda.synchronize()
    torch.empty(1, device="cuda")
    assert in_use() < held + 2**26
    for engine in (EagerEngine(CUDA), CapturedEngine(CUDA)):
        assert losses_of(taken(engine, "lora", tiny_sd, pictures)) == expected


def test_another_thread_may_use_the_gpu_meanwhile(deterministic: None, tiny_sd: Path, pictures: Path) -> None:
    """Batches are made ahead, and texts encoded, while a step is being recorded."""
    expected = losses_of(taken(EagerEngine(CUDA), "lora", tiny_sd, pictures))
    one = taken(CapturedEngine(CUDA), "lora", tiny_sd, pictures)

    def make(number: int) -> list[Batch]:
        large = torch.randn(256, 256, device="cuda")
        for _ in range(50):
            large = torch.tanh(large @ large).cpu().pin_memory().to("cuda", non_blocking=True)
        return [batch.pinned() for batch in one.samples.step(number)]

    with Ahead(make, range(STEPS), torch.device("cuda", torch.cuda.current_device())) as ahead:
        results = [one.engine.step(ahead.take(), 0.5 ** (number % 3)) for number in range(STEPS)]
    assert [float(result.loss) for result in results] == expected
