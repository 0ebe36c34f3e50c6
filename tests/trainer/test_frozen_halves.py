"""Frozen weights in half precision: the same steps, to the bit, and everybody else sees the weights as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.engines import eager
from finetune_trainer.engines.captured import CapturedEngine
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.halves import FrozenHalves, half_for
from finetune_trainer.engines.trained_halves import TrainedHalves
from support.method_cases import METHODS
from support.stepping import Stepping, numbers_of, stepping
from support.tape import Tape
from support.tiny_sdxl import build_tiny_sdxl
from support.training import make_run
from torch import Tensor, nn

CPU = torch.device("cpu")
EXACT = [case for case in METHODS if case != "dora"]
"""A DoRA divides by the length of the frozen weights' rows, in whatever precision these are."""


@pytest.mark.parametrize(
    ("precision", "device", "half"),
    [
        ("bf16", "cuda", torch.bfloat16),
        ("fp16", "cuda", torch.float16),
        ("fp32", "cuda", None),
        ("bf16", "cpu", None),
        ("fp32", "cpu", None),
    ],
)
def test_where_they_are_halves(precision: str, device: str, half: torch.dtype | None) -> None:
    assert half_for(precision, torch.device(device)) == half  # type: ignore[arg-type]  # one of the three


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(eager, "half_for", lambda precision, device: half_for(precision, torch.device("cuda")))


def taken(case: str, model: Path, pictures: Path, engine: EagerEngine, precision: str = "bf16") -> Stepping:
    (technique, settings) = next(iter(METHODS[case].items()))
    training = {"learningRate": 2**-7, "precision": precision, "ema": True, "batchSize": 2}
    return stepping(make_run(technique, method={technique: settings}, training=training), engine, model, pictures)


def losses_of(stepping: Stepping) -> list[float]:
    return [float(value) for step in range(3) for value in vars(stepping.step(step)).values()]


def frozen(one: Stepping) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in one.module.named_parameters() if not value.requires_grad}


@pytest.mark.parametrize("case", EXACT)
def test_steps_are_the_same_to_the_bit(
    case: str, tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = taken(case, tiny_sd, pictures, EagerEngine(CPU))
    expected = losses_of(whole)
    monkeypatch.setattr(eager, "half_for", lambda precision, device: torch.bfloat16)
    one = taken(case, tiny_sd, pictures, EagerEngine(CPU))
    assert losses_of(one) == expected
    theirs, ours = numbers_of(whole.engine.state()), numbers_of(one.engine.state())
    assert [name for name, value in theirs.items() if not torch.equal(value, ours[name])] == []
    assert all(value.dtype == torch.float32 for value in ours.values() if value.is_floating_point())


def test_those_of_a_dora_are_nearly_so(tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = losses_of(taken("dora", tiny_sd, pictures, EagerEngine(CPU)))
    monkeypatch.setattr(eager, "half_for", lambda precision, device: torch.bfloat16)
    assert losses_of(taken("dora", tiny_sd, pictures, EagerEngine(CPU))) == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("family", ["SD", "SDXL"])
def test_most_of_a_frozen_model_is_half_as_large(
    family: str, halved: None, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    model = tiny_sd if family == "SD" else build_tiny_sdxl(tmp_path)
    one = taken("lora", model, pictures, EagerEngine(CPU))
    kinds = {type(layer) for layer in one.module.modules() for value in layer.parameters(False) if value in half(one)}
    assert kinds == {nn.Linear, nn.Conv2d}
    sizes = {True: 0, False: 0}
    for value in frozen(one).values():
        sizes[value.dtype == torch.bfloat16] += value.numel()
    assert sizes[True] > 0.7 * sum(sizes.values())


def half(one: Stepping) -> set[nn.Parameter]:
    return {value for value in one.module.parameters() if value.dtype == torch.bfloat16}


def test_outside_of_steps_they_are_as_they_were(halved: None, tiny_sd: Path, pictures: Path) -> None:
    """For drawing, for what is exported on the way, and at the end; and the rounded ones keep their places, which
    recordings read."""
    one = taken("lora", tiny_sd, pictures, CapturedEngine(CPU, Tape()))
    plain = taken("lora", tiny_sd, pictures, EagerEngine(CPU), "fp32")
    expected = frozen(plain)
    before = one.step(0)
    places = {name: value.data_ptr() for name, value in frozen(one).items()}
    assert any(value.dtype == torch.bfloat16 for value in frozen(one).values())
    with pytest.raises(KeyError), one.engine.averaged():
        found = frozen(one)
        assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
        assert {value.dtype for value in found.values()} == {torch.float32}
        raise KeyError("a duty that fails leaves things as they were")
    assert {name: value.data_ptr() for name, value in frozen(one).items()} == places
    assert not torch.equal(one.step(1).loss, before.loss)
    one.engine.settle(None)
    found = frozen(one)
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def test_what_is_trained_stays_float32() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Embedding(4, 4), nn.Linear(4, 4))
    layer.requires_grad_(False)[3].requires_grad_(True)
    FrozenHalves(layer, torch.float16)
    assert [value.dtype for value in layer.parameters()] == [torch.float16] * 2 + [torch.float32] * 5


@pytest.mark.parametrize("kind", [FrozenHalves, TrainedHalves])
def test_where_memory_does_not_suffice_to_make_them_whole_they_stay_as_they_were(
    kind: type[FrozenHalves] | type[TrainedHalves], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their places too, which recordings read."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    if kind is FrozenHalves:
        halves: FrozenHalves | TrainedHalves = FrozenHalves(module.requires_grad_(False), torch.bfloat16)
    else:
        halves = TrainedHalves(module, module.parameters())
    places = [value.data_ptr() for value in module.parameters()]

    def some() -> None:
        module[0].weight.data = torch.zeros(3, 3)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(halves, "restore", some)
    with pytest.raises(torch.OutOfMemoryError), halves.whole():
        raise AssertionError("not reached")
    assert {value.dtype for value in module.parameters()} == {torch.bfloat16}
    assert [value.data_ptr() for value in module.parameters()] == places
