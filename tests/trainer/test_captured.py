"""The captured engine is the reference, recorded. On a CPU its steps are those of the eager engine to the bit, whatever
is trained: done anew each time, and repeated by a CUDA graph in software."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from finetune_api import TrainingRun
from finetune_trainer.engines import Engine
from finetune_trainer.engines.captured import REHEARSALS, CapturedEngine, not_capturable
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.recording import Again, Recorder, RecordingFailed
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.training.twice import compute_twice
from support.method_cases import METHODS
from support.samples import bucketed, make_shapes
from support.stepping import Stepping, numbers_of, stepping
from support.tape import Tape
from support.tiny_sdxl import build_tiny_sdxl
from support.training import make_run

CPU = torch.device("cpu")
RATE = 2**-7
"""A float32 number: the rate is one on the device."""
STEPS = 3


@pytest.fixture(scope="module")
def models(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"SD": tiny_sd, "SDXL": build_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))}


def both(run: TrainingRun, model: Path, pictures: Path, recorder: Recorder | None = None) -> tuple[Stepping, Stepping]:
    engines: list[Engine] = [EagerEngine(CPU), CapturedEngine(CPU, recorder or Tape())]
    one, other = (stepping(run, engine, model, pictures) for engine in engines)
    return one, other


def assert_same_steps(one: Stepping, other: Stepping, first: int = 0, steps: int = STEPS) -> None:
    for number in range(first, first + steps):
        # a number that is another one in each step
        expected, found = (engine.step(number, 0.5 ** (number % 3)) for engine in (one, other))
        assert [float(found.loss), float(found.grad_norm)] == [float(expected.loss), float(expected.grad_norm)]
        assert (bool(found.skipped), found.learning_rate) == (bool(expected.skipped), expected.learning_rate)
    assert_same(one, other)


def assert_same(one: Stepping, other: Stepping) -> None:
    expected, found = numbers_of(one.engine.state()), numbers_of(other.engine.state())
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


@pytest.mark.parametrize(("family", "accumulation"), [("SD", 1), ("SDXL", 2)])
@pytest.mark.parametrize("case", METHODS)
def test_every_technique_takes_the_references_steps(
    case: str, family: str, accumulation: int, models: dict[str, Path], pictures: Path
) -> None:
    training = {"learningRate": RATE, "ema": True, "gradientAccumulationSteps": accumulation}
    ((technique, settings),) = METHODS[case].items()
    own: dict[str, object] = {"textEncoderLearningRate": RATE / 4} if "textEncoderLearningRate" in settings else {}
    if "sizes" in settings and family == "SDXL":
        own["sizes"] = [32, 56]
    run = make_run(technique, method={technique: settings | own}, training=training | {"batchSize": 2})
    tape = Tape()
    assert_same_steps(*both(run, models[family], pictures, tape))
    assert tape.operations > 500


@pytest.mark.parametrize("accumulation", [1, 2])
def test_without_a_recording_too(accumulation: int, tiny_sd: Path, pictures: Path) -> None:
    """As a CPU has it outside of tests."""
    run = make_run("dreamBooth", training={"learningRate": RATE, "gradientAccumulationSteps": accumulation})
    assert_same_steps(*both(run, tiny_sd, pictures, Again()))


DROPPING: dict[str, dict[str, object]] = {
    "lora": {"prompt": "sks dog", "rank": 4, "dropout": 0.3},
    "hypernetwork": {"prompt": "sks dog", "dropout": 0.3},
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("technique", DROPPING)
def test_dropout_drops_the_same(technique: str, accumulation: int, tiny_sd: Path, pictures: Path) -> None:
    """And nobody else's draws change."""
    training = {"learningRate": RATE, "gradientAccumulationSteps": accumulation}
    run = make_run(technique, method={technique: DROPPING[technique]}, training=training)
    one, other = both(run, tiny_sd, pictures)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert_same_steps(one, other)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": {"name": "AdamW8bit"}},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"loss": {"weighting": "MinSnr"}, "scheduler": {"name": "Cosine"}},
    ],
    ids=str,
)
def test_settings_change_nothing_about_that(training: dict[str, object], tiny_sd: Path, pictures: Path) -> None:
    run = make_run("dreamBooth", training={"learningRate": RATE} | training)
    one, other = both(run, tiny_sd, pictures)
    assert_same_steps(one, other)
    assert one.engine.state().loss_scale == other.engine.state().loss_scale


@pytest.mark.parametrize("accumulation", [1, 3])
def test_shapes_that_take_turns(accumulation: int, tiny_sd: Path, tmp_path: Path) -> None:
    """A micro-batch of a shape that was not seen before, in the middle of a step: it is rehearsed before the step."""
    run = bucketed(1, accumulation)
    run = run.model_copy(update={"training": run.training.model_copy(update={"learning_rate": RATE})})
    one, other = both(run, tiny_sd, make_shapes(tmp_path))
    shapes = [{tuple(batch.noise.shape) for batch in one.samples.step(step)} for step in range(6)]
    assert len(set().union(*shapes)) > 2
    assert accumulation == 1 or any(len(found) > 1 for found in shapes)
    assert_same_steps(one, other, steps=6)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_poisoned_step_changes_nothing_here_either(accumulation: int, tiny_sd: Path, pictures: Path) -> None:
    training = {"learningRate": RATE, "ema": True, "gradientAccumulationSteps": accumulation}
    one, other = both(make_run(training=training), tiny_sd, pictures)
    assert_same_steps(one, other, steps=2)
    for engine in (one, other):
        assert engine.poisoned(2).skipped
    assert_same_steps(one, other, first=3)


def test_it_goes_on_from_the_references_checkpoint_and_back(tiny_sd: Path, pictures: Path) -> None:
    run = make_run(training={"learningRate": RATE, "ema": True})
    one, other = both(run, tiny_sd, pictures)
    other.step(7)
    one.step(0)
    other.engine.load(one.engine.state())
    assert_same_steps(one, other, first=1)
    one.engine.load(other.engine.state())
    assert_same_steps(one, other, first=1 + STEPS)


def test_a_rate_that_float32_does_not_have(tiny_sd: Path, pictures: Path) -> None:
    """The stated tolerance: a rate is rounded to seven digits, and so are the steps."""
    one, other = both(make_run("dreamBooth", training={"learningRate": 1e-3}), tiny_sd, pictures)
    for number in range(STEPS):
        expected, found = one.step(number), other.step(number)
        assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-6)
    theirs, ours = (numbers_of(engine.engine.state()) for engine in (one, other))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-7)


class Watched:
    """Implements Recorder: does what it is given when it is told to, like a graph, and counts."""

    def __init__(self) -> None:
        self.recorded = 0
        self.rehearsals = 0

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        self.rehearsals += 1
        yield

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        return work

    def make_room(self) -> None:
        self.recorded = 0


def test_each_shape_is_recorded_once(tiny_sd: Path, tmp_path: Path) -> None:
    run, recorder = bucketed(1, 1), Watched()
    engine = stepping(run, CapturedEngine(CPU, recorder), tiny_sd, make_shapes(tmp_path))
    shapes = {tuple(engine.samples.step(step)[0].noise.shape) for step in range(8)}
    for step in range(8):
        engine.step(step)
    assert recorder.recorded == recorder.rehearsals == len(shapes) > 1
    engine.engine.load(engine.engine.state())
    engine.step(0)
    assert recorder.recorded == len(shapes) + 1, "what a checkpoint brought lies elsewhere"


def test_the_optimizers_state_is_there_before_the_first_activation(tiny_sd: Path, pictures: Path) -> None:
    """Or it would come to lie among them."""
    states = []

    class Looking(Watched):
        @contextmanager
        def rehearsing(self) -> Iterator[None]:
            states.append(found.engine.state())
            yield

    found = stepping(make_run(training={"learningRate": RATE}), CapturedEngine(CPU, Looking()), tiny_sd, pictures)
    found.step(0)
    (state,) = states
    assert {name for name in state.weights if f"{name}/exp_avg" not in state.optimizer} == set()
    assert not any(bool(value.any()) for value in state.optimizer.values())


def test_what_was_told_of_a_step_stays(tiny_sd: Path, pictures: Path) -> None:
    """It is read some steps later."""
    one, other = both(make_run(training={"learningRate": RATE}), tiny_sd, pictures)
    later = [other.step(number) for number in range(STEPS)]
    assert [float(result.loss) for result in later] == [float(one.step(number).loss) for number in range(STEPS)]
    assert len({float(result.loss) for result in later}) == STEPS
    assert REHEARSALS > 0


DROPOUT = {"prompt": "sks dog", "rank": 4, "dropout": 0.1}


@pytest.mark.parametrize(
    ("training", "method", "says"),
    [
        ({}, {}, None),
        ({"optimizer": {"name": "AdamW8bit"}, "gradientAccumulationSteps": 4, "precision": "fp16"}, DROPOUT, None),
        ({"gradientCheckpointing": True}, {}, None),
        ({"optimizer": {"name": "Adafactor"}}, {}, "optimizer.name is Adafactor, .* use AdamW or AdamW8bit, or engine"),
        ({"optimizer": {"name": "Prodigy"}, "learningRate": 1}, {}, "optimizer.name is Prodigy"),
        ({"gradientCheckpointing": True}, DROPOUT, "gradientCheckpointing is true together .* or engine.kind Eager"),
    ],
)
def test_what_cannot_be_captured(
    training: dict[str, object], method: dict[str, object], says: str | None, tiny_sd: Path, pictures: Path
) -> None:
    run = make_run(training=training, method={"lora": method} if method else {})
    if says is None:
        found = stepping(run, CapturedEngine(CPU), tiny_sd, pictures)
        assert not_capturable(run.training, found.module) is None
        return
    with pytest.raises(ConfigurationError, match=f"engine.kind Captured: .*{says}"):
        stepping(run, CapturedEngine(CPU), tiny_sd, pictures)


def test_checkpointing_leaves_the_generators_alone(
    tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a step is captured, a GPU refuses to tell their state."""

    class Strict(Tape):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            def refuse() -> None:
                raise AssertionError("asked for the generator's state")

            with monkeypatch.context() as patched:
                patched.setattr(torch, "get_rng_state", refuse)
                return super().record(work)

    run = make_run("dreamBooth", training={"learningRate": RATE, "gradientCheckpointing": True})
    one, other = both(run, tiny_sd, pictures, Strict())
    for prepared in (one, other):
        for part in prepared.module.parts.values():
            compute_twice(part)
    assert_same_steps(one, other)


def test_the_graph_in_software_finds_what_cannot_be_captured(
    tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the tests above would say nothing."""
    monkeypatch.setattr("finetune_trainer.engines.captured.not_capturable", lambda spec, module: None)
    run = make_run(training={"optimizer": {"name": "Prodigy"}, "learningRate": 1})
    asks = stepping(run, CapturedEngine(CPU, Tape()), tiny_sd, pictures)
    with pytest.raises(RecordingFailed, match="asks the device for a number"):
        asks.step(0)

    def frozen(engine: CapturedEngine, factor: float) -> float:
        for group in engine._optimizer.param_groups:
            group["lr"] = RATE * factor
        return RATE * factor

    monkeypatch.setattr(CapturedEngine, "_set_rates", frozen)
    one, other = both(make_run("dreamBooth", training={"learningRate": RATE}), tiny_sd, pictures)
    with pytest.raises(AssertionError):
        assert_same_steps(one, other)
