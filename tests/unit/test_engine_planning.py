"""Which engine a training gets, and what follows when its memory does not suffice: tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_api.engine import EngineKind, EngineSpec
from finetune_trainer.planning.plans import Facts, Plan, choose, next_leaner, pays_to_compile, plans
from support.engine_facts import GIB, GPU

PLAIN: frozenset[EngineKind] = frozenset(("Eager", "Replicated"))
CPU = replace(GPU, device="cpu", memory=None, described=None)


def of(kind: EngineKind, **options: object) -> EngineSpec:
    return EngineSpec().model_copy(update={"kind": kind, **options})


@pytest.mark.parametrize(
    ("facts", "words", "why"),
    [
        (CPU, "Eager", "one process on a CPU"),
        (replace(CPU, checkpointing=True), "Eager, activations computed twice", "one process on a CPU"),
        (replace(CPU, processes=2), "Replicated", "a copy in each process is the fastest"),
        (replace(CPU, processes=2, asked=EngineSpec(nodes=2)), "Replicated", "a copy in each process is the fastest"),
        (
            replace(CPU, asked=of("Captured")),
            "Captured",
            "as spec.engine.kind says; a CPU has no graphs, and does each",
        ),
        (replace(CPU, asked=of("DeepSpeed")), "DeepSpeed, ZeRO-2", "as spec.engine.kind says"),
        # on a GPU, as far as it is there
        (GPU, "Captured", "a recorded step is the fastest"),
        (replace(GPU, available=PLAIN), "Eager", "one process"),
        (replace(GPU, capturable=False), "Eager", "one process"),
        (replace(GPU, checkpointing=True), "Captured, activations computed twice", "a recorded step is the fastest"),
        (replace(GPU, checkpointing=True, capturable_twice=False), "Eager, activations computed twice", "one process"),
        (replace(GPU, steps=19), "Eager", "one process"),
        (replace(GPU, shapes=26), "Eager", "one process"),
        (replace(GPU, shapes=25), "Captured", "a recorded step is the fastest"),
        (replace(GPU, steps=25_000), "Compiled", "25000 steps are worth the time to compile"),
        (replace(GPU, steps=25_000, shapes=2), "Captured", "a recorded step is the fastest"),
        (replace(GPU, steps=25_000, checkpointing=True), "Compiled, activations computed twice", "25000 steps"),
        (replace(GPU, steps=25_000, capturable=False), "Eager", "one process"),
        (replace(GPU, processes=8), "Replicated", "a copy in each process is the fastest"),
        (replace(GPU, asked=of("DeepSpeed", zero_stage=1)), "DeepSpeed, ZeRO-1", "as spec.engine.kind says"),
        # and as far as it fits
        (replace(GPU, memory=21 * GIB), "Captured, micro-batches cut in 2", "Captured would take 19.3 GiB of 21.0 GiB"),
        (replace(GPU, memory=18 * GIB, available=PLAIN), "Eager, activations computed twice", "Eager would take"),
        (
            replace(GPU, memory=8 * GIB),
            "DeepSpeed, ZeRO-3, optimizer on the host, parameters on the host, activations computed twice, "
            "micro-batches cut in 4",
            "Captured would take",
        ),
        (
            replace(GPU, memory=8 * GIB, available=PLAIN),
            "Eager, activations computed twice, micro-batches cut in 4",
            "nothing is predicted to fit in 8.0 GiB; this is the leanest",
        ),
        (
            replace(GPU, memory=19 * GIB, asked=of("Captured")),
            "Captured, micro-batches cut in 4",
            "as spec.engine.kind",
        ),
        (
            replace(GPU, memory=19 * GIB, processes=4, available=PLAIN),
            "Replicated, activations computed twice",
            "a copy in each process",
        ),
        (
            replace(GPU, described=None, available=PLAIN),
            "Eager, activations computed twice, micro-batches cut in 4",
            "two samples alone, without gradients, did not fit",
        ),
        (
            replace(GPU, memory=12 * GIB, processes=4),
            "Sharded, activations computed twice",
            "the processes share the memory",
        ),
    ],
)
def test_the_fastest_that_fits(facts: Facts, words: str, why: str) -> None:
    plan = choose(facts)
    assert plan.words == words
    assert why in plan.why


def fallen(facts: Facts) -> list[Plan]:
    """What is tried one after the other when memory never suffices."""
    tried: list[Plan] = []
    plan: Plan | None = choose(facts)
    while plan is not None:
        tried.append(plan)
        plan = next_leaner(facts, plan)
    return tried


def test_what_follows_is_leaner_each_time() -> None:
    tried = fallen(GPU)
    assert [plan.words for plan in tried] == [
        "Captured",
        "Captured, micro-batches cut in 4",
        "Captured, activations computed twice, micro-batches cut in 4",
        "DeepSpeed, ZeRO-2, optimizer on the host, activations computed twice, micro-batches cut in 4",
        "DeepSpeed, ZeRO-3, optimizer on the host, parameters on the host, activations computed twice, "
        "micro-batches cut in 4",
    ]
    taken = [plan.predicted_bytes or 0 for plan in tried]
    assert taken == sorted(taken, reverse=True)
    assert tried[1].why == "Captured ran out of memory"


def test_what_cannot_be_recorded_twice_is_not() -> None:
    tried = fallen(replace(GPU, capturable_twice=False, available=PLAIN | {"Captured"}))
    assert [plan.words for plan in tried] == [
        "Captured",
        "Captured, micro-batches cut in 4",
        "Eager, activations computed twice, micro-batches cut in 4",
    ]


def test_without_a_prediction_the_row_is_followed() -> None:
    assert [plan.words for plan in fallen(replace(CPU, samples=6))] == [
        "Eager",
        "Eager, activations computed twice",
        "Eager, activations computed twice, micro-batches cut in 2",
        "Eager, activations computed twice, micro-batches cut in 6",
    ]


def test_nothing_is_leaner_than_one_sample_computed_twice() -> None:
    facts = replace(CPU, samples=1, checkpointing=True)
    assert next_leaner(facts, choose(facts)) is None


@pytest.mark.parametrize("kind", ["Captured", "Compiled"])
def test_what_was_asked_to_be_recorded_is_not_computed_twice_where_it_cannot_be(kind: EngineKind) -> None:
    row = plans(replace(GPU, asked=of(kind), capturable_twice=False))
    assert [(plan.checkpointing, plan.cuts) for plan in row] == [(False, 1), (False, 2), (False, 4)]


def test_a_kind_that_was_asked_for_stays() -> None:
    facts = replace(GPU, asked=of("Sharded", offload_parameters="Cpu"))
    assert {plan.engine for plan in plans(facts)} == {facts.asked}


@pytest.mark.parametrize(
    ("changes", "pays"),
    [
        ({"steps": 20_000}, False),
        ({"steps": 21_000}, True),
        ({"steps": 5_500, "samples": 16}, True),
        ({"steps": 6_000, "latents": 4 * 4096}, True),
        ({"steps": 10_000, "latents": 1024}, False),
    ],
)
def test_when_compiling_pays(changes: dict[str, int], pays: bool) -> None:
    assert pays_to_compile(replace(GPU, **changes)) is pays  # type: ignore[arg-type]  # all are whole numbers
