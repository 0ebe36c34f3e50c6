"""The peak of a step, in numbers small enough to be added up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_api.engine import EngineSpec
from finetune_trainer.planning.memory import Bytes, Description, Unit, predict, state_bytes

FIRST = Unit(before=Bytes(0, 10), saved=Bytes(0, 100), inputs=Bytes(0, 1), trained=30)
LAST = Unit(before=Bytes(0, 20), saved=Bytes(5, 200), inputs=Bytes(0, 2), trained=70)
TOY = Description(
    frozen=1000,
    trained=((30,), (7, 10)),
    units=(FIRST, LAST),
    saved_last=Bytes(0, 40),
    largest_saved=Bytes(0, 3),
    samples=2,
    micro_batches=1,
    optimizer="AdamW",
    ema=False,
)
EAGER = EngineSpec(kind="Eager")


def working(described: Description, checkpointing: bool = False, cuts: int = 1, engine: EngineSpec = EAGER) -> float:
    return predict(described, engine, checkpointing, cuts).working


def test_everything_is_kept_before_the_first_gradient_comes() -> None:
    # 2 × (10 + 100 + 20 + 200) + 5 of the units, and the last unit's gradients; twice the largest tensor passes
    assert working(TOY) == 665 + 70 * 4 + 2 * 6


def test_gradients_grow_while_activations_go() -> None:
    heavy = replace(TOY, units=(replace(FIRST, trained=10_000), replace(LAST, trained=20_000)), trained=((30_000,),))
    assert working(heavy) == 2 * 110 + 30_000 * 4 + 2 * 6


def test_gradients_of_an_earlier_micro_batch_are_there_from_the_beginning() -> None:
    assert working(replace(TOY, micro_batches=2)) == 665 + 80 + 100 * 4 + 2 * 6


def test_one_unit_at_a_time_is_computed_again() -> None:
    # what comes between, each unit's inputs, and all of the last unit
    assert working(TOY, checkpointing=True) == 2 * (10 + 1 + 20 + 2) + 405 + 70 * 4 + 2 * 6


def test_a_micro_batch_in_two_pieces_carries_gradients() -> None:
    assert working(TOY, cuts=2) == 335 + 40 + 100 * 4 + 2 * 3


def test_gradients_that_travel_stay() -> None:
    assert working(TOY, engine=EngineSpec(kind="Replicated", processes_per_node=2)) == 665 + 80 + 100 * 4 + 2 * 6


def test_what_lasts() -> None:
    found = predict(replace(TOY, ema=True), EAGER, checkpointing=False)
    assert (found.weights, found.optimizer, found.average) == (1000 + 400, 800, 400)
    assert found.total == 1400 + 800 + 400 + found.working


@pytest.mark.parametrize(
    ("optimizer", "shape", "expected"),
    [
        ("AdamW", (10, 10), 800),
        ("AdamW8bit", (10, 10), 800),  # too small for codes
        ("AdamW8bit", (64, 100), 2 * 25 * (256 + 4)),
        ("Adafactor", (10, 20), 4 * (10 + 20)),
        ("Adafactor", (8, 4, 3, 3), 4 * (8 * 4 * 3 + 8 * 4 * 3)),
        ("Adafactor", (20,), 80),
        ("Prodigy", (10, 10), 1600),
    ],
)
def test_what_an_optimizer_remembers(optimizer: str, shape: tuple[int, ...], expected: float) -> None:
    assert state_bytes(optimizer, shape) == expected


def zero(**options: object) -> EngineSpec:
    return EngineSpec.model_validate({"kind": "DeepSpeed", **options})


def test_zero_cuts_and_moves_away() -> None:
    """State: moments and the optimizer's own weights."""
    state = 800 + 400
    assert predict(TOY, zero(), False).optimizer == state
    assert predict(TOY, zero(), False, processes=4).optimizer == state / 4
    assert predict(TOY, zero(offloadOptimizer="Cpu"), False).optimizer == 0
    assert predict(TOY, zero(), False, processes=4).weights == 1400
    assert predict(replace(TOY, half=True), zero(), False).weights == 1200
    large = replace(TOY, frozen=4_000_000_000)
    moved = predict(large, zero(zeroStage=3, offloadParameters="Cpu"), False)
    assert moved.weights == 400_000_000, "those that compute"
    assert predict(large, zero(zeroStage=3), False, processes=4).weights == 4_000_000_400 / 4 + 400_000_000
