"""Trained weights in bf16: what they learn beside float32, in every engine and attempt the same bits, and float32 for
whoever draws or exports."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from finetune_api.engine import EngineSpec
from finetune_api.training_run import ResolvedTraining
from finetune_trainer.data.samples import Batch
from finetune_trainer.engines import Engine, adamw_8bit, make_engine
from finetune_trainer.engines.captured import CapturedEngine
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.trained_halves import MOST_MICRO_BATCHES
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.exports import export_weights
from finetune_trainer.methods import ParameterGroup
from safetensors.torch import load_file
from support.groups import train_as_group
from support.method_cases import METHODS
from support.stepping import Stepping, numbers_of, stepping
from support.tape import Tape
from support.toys import batch_of
from support.training import make_run, train_once
from torch import Tensor, nn

CPU = torch.device("cpu")
RATE = 2**-7
"""A float32 number: a captured engine's rate is one on the device."""
HALF: dict[str, object] = {"precision": "bf16", "weightsDtype": "bf16", "optimizer": {"name": "AdamW8bit"}}


class Layers(nn.Module):
    """Learns a fixed map through the layers that models have."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.norm, self.second = nn.Linear(32, 128), nn.LayerNorm(128), nn.Linear(128, 16)
        for parameter in (self.first.weight, self.second.weight):
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
        self.first.bias.data.zero_()
        self.second.bias.data.zero_()
        self.truth = torch.randn(16, 32, generator=generator) / 32**0.5

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(int(batch.timesteps)))
        outputs = self.second(self.norm(self.first(inputs)).relu()).float()
        losses = (outputs - inputs @ self.truth.T).square().mean(1)
        return losses.mean() * batch.weights.sum(), losses


def training(**values: object) -> ResolvedTraining:
    return make_run(training={**HALF, "learningRate": 1e-3} | values).training


def prepared(module: nn.Module, spec: ResolvedTraining, engine: Engine | None = None) -> Engine:
    engine = engine or make_engine(EngineSpec(), CPU)
    engine.prepare(module, [ParameterGroup("all", dict(module.named_parameters()))], spec, [])
    return engine


def losses(module: nn.Module, spec: ResolvedTraining, steps: int) -> Tensor:
    engine = prepared(module, spec)
    return torch.stack([engine.step([batch_of(number=number)], 1.0).loss for number in range(steps)])


def test_a_training_comes_as_far_as_in_float32_and_not_without_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """800 steps at a rate at which most updates are less than half the distance to the next number. The last losses
    are within 3 % of those of float32; rounded to the nearest they are far above."""
    rate = {"learningRate": 1e-4}
    whole = losses(Layers(), training(weightsDtype="fp32", **rate), 800)
    ours = losses(Layers(), training(**rate), 800)
    monkeypatch.setattr(adamw_8bit, "rounded_by_chance", lambda values, low: values.bfloat16())
    nearest = losses(Layers(), training(**rate), 800)
    begun, ended = whole[:20].mean(), whole[-100:].mean()
    assert ended < 0.5 * begun
    torch.testing.assert_close(ours[-100:].mean(), ended, rtol=0.03, atol=0)
    assert nearest[-100:].mean() > 1.1 * ended


def test_norms_stay_float32_and_moments_too() -> None:
    module = Layers()
    engine = prepared(module, training())
    engine.step([batch_of()], 1.0)
    dtypes = {name: value.dtype for name, value in module.named_parameters()}
    halves = {f"{layer}.{what}" for layer in ("first", "second") for what in ("weight", "bias")}
    assert {name for name, dtype in dtypes.items() if dtype == torch.bfloat16} == halves
    assert {dtypes[name] for name in dtypes.keys() - halves} == {torch.float32}
    kept = engine.state().optimizer
    assert kept["second.bias/first"].dtype == kept["second.bias/root"].dtype == torch.float32
    assert {value.dtype for value in kept.values()} == {torch.float32, torch.uint8}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("case", METHODS)
def test_a_recorded_step_rounds_alike(case: str, accumulation: int, tiny_sd: Path, pictures: Path) -> None:
    ((technique, settings),) = METHODS[case].items()
    own: dict[str, object] = {"textEncoderLearningRate": RATE / 4} if "textEncoderLearningRate" in settings else {}
    values = {**HALF, "learningRate": RATE, "ema": True, "gradientAccumulationSteps": accumulation}
    run = make_run(technique, method={technique: settings | own}, training=values)
    one, other = (
        stepping(run, engine, tiny_sd, pictures) for engine in (EagerEngine(CPU), CapturedEngine(CPU, Tape()))
    )
    for number in range(3):
        expected, found = one.step(number), other.step(number)
        assert (float(found.loss), float(found.grad_norm)) == (float(expected.loss), float(expected.grad_norm))
    assert_same(one, other)


def assert_same(one: Stepping, other: Stepping) -> None:
    expected, found = numbers_of(one.engine.state()), numbers_of(other.engine.state())
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def dreambooth(**values: object) -> dict[str, object]:
    return {**HALF, "learningRate": RATE, **values}


def test_a_poisoned_step_changes_nothing_and_draws_nothing(tiny_sd: Path, pictures: Path) -> None:
    """The step after it rounds as if it had not been."""
    run = make_run("dreamBooth", training=dreambooth())
    one, other = (stepping(run, EagerEngine(CPU), tiny_sd, pictures) for _ in range(2))
    for each in (one, other):
        each.step(0)
    assert one.poisoned(1).skipped
    assert_same(one, other)
    one.step(2)
    other.step(2)
    assert_same(one, other)


def test_it_goes_on_from_a_checkpoint_to_the_bit(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    """Through the checkpoint's files."""
    run = make_run(
        "dreamBooth",
        training=dreambooth(ema=True, gradientAccumulationSteps=2, steps=6),
        checkpoints={"everySteps": 3},
    )
    whole, straight = train_once(run, tiny_sd, pictures, tmp_path / "whole")
    looks = iter(range(4))
    train_once(run, tiny_sd, pictures, tmp_path / "parts", lambda: next(looks, None) is None)
    resumed, parts = train_once(run, tiny_sd, pictures, tmp_path / "parts", attempt="second")
    assert parts.resumed_from_step in (3, 4)
    assert parts.losses == straight.losses
    expected = whole.parts["unet"].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.parts["unet"].state_dict().items())


def test_who_draws_on_a_cpu_sees_the_same_numbers_in_float32() -> None:
    module = Layers()
    engine = prepared(module, training())
    engine.step([batch_of()], 1.0)
    places = [value.data_ptr() for value in module.parameters()]
    before = engine.weights()
    with engine.averaged():
        assert {value.dtype for value in module.parameters()} == {torch.float32}
        assert all(torch.equal(value, before[name].float()) for name, value in module.named_parameters())
        module(batch_of())
    assert [value.data_ptr() for value in module.parameters()] == places, "where a recording reads them"
    assert all(torch.equal(value, before[name]) for name, value in engine.weights().items())
    engine.settle(None)
    assert {value.dtype for value in module.parameters()} == {torch.float32}
    assert all(torch.equal(value, before[name].float()) for name, value in module.named_parameters())


def test_an_average_is_finer_than_its_weights() -> None:
    module = Layers()
    engine = prepared(module, training(ema=True))
    for number in range(5):
        engine.step([batch_of(number=number)], 1.0)
    before = engine.state()
    assert before.average is not None
    for _ in range(2):
        with engine.averaged():
            assert all(torch.equal(value, before.average.weights[name]) for name, value in module.named_parameters())
    after = engine.state()
    assert after.average is not None
    assert all(torch.equal(value, before.weights[name]) for name, value in after.weights.items())
    assert all(torch.equal(value, before.average.weights[name]) for name, value in after.average.weights.items())
    assert not torch.equal(
        before.average.weights["first.weight"].bfloat16().float(), after.average.weights["first.weight"]
    )
    engine.settle(None)
    assert all(torch.equal(value, before.average.weights[name]) for name, value in module.named_parameters())


@pytest.mark.parametrize(("dtype", "expected"), [("fp16", torch.float16), ("fp32", torch.float32)])
def test_what_is_exported_has_the_outputs_dtype(
    dtype: str, expected: torch.dtype, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    run = make_run("dreamBooth", training=dreambooth(steps=2), output={"dtype": dtype})
    family, trained = train_once(run, tiny_sd, pictures, tmp_path / "work")
    files = export_weights(run, family, [method.result() for method in trained.methods], tmp_path / "out")
    (unet,) = (path for path in files if "unet" in path.parts and path.suffix == ".safetensors")
    assert {value.dtype for value in load_file(unet).values()} == {expected}


@pytest.mark.parametrize("count", [2, 4, 16, MOST_MICRO_BATCHES])
@pytest.mark.parametrize("alike", [False, True])
def test_sums_of_gradients_in_bf16_are_off_by_less_than_a_hundredth(count: int, alike: bool) -> None:
    """Whether they point anywhere or all one way."""
    generator = torch.Generator().manual_seed(count)
    common = torch.randn(4096, generator=generator)
    parts = [common * alike + torch.randn(4096, generator=generator) * (0.1 if alike else 1) for _ in range(count)]
    parameter = nn.Parameter(torch.zeros(4096, dtype=torch.bfloat16))
    for part in parts:
        (parameter * part.bfloat16()).sum().backward()
    exact = torch.stack([part.bfloat16().float() for part in parts]).sum(0)
    assert parameter.grad is not None
    assert (parameter.grad.float() - exact).norm() < 0.01 * exact.norm()


def test_more_micro_batches_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"33 micro-batches in a step.*use fewer, or fp32"):
        prepared(Layers(), training(gradientAccumulationSteps=MOST_MICRO_BATCHES + 1))
    prepared(Layers(), training(weightsDtype="fp32", gradientAccumulationSteps=MOST_MICRO_BATCHES + 1))


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor


def test_copies_in_two_processes_round_alike(
    pool: ProcessPoolExecutor, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    run = make_run(
        "dreamBooth", True, training=dreambooth(steps=4, gradientAccumulationSteps=2), output={"dtype": "fp32"}
    )
    first, second = train_as_group(pool, run, 2, tiny_sd, pictures, tmp_path)
    assert first.losses == second.losses
    assert first.weights == second.weights
