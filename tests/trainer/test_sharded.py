"""FSDP2 does what copies in each process do, with the parameters cut among the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from finetune_api.engine import EngineSpec
from finetune_trainer.engines.sharded import ShardedEngine, blocks
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.families import load_family
from finetune_trainer.group.team import ALONE
from support.groups import in_group
from support.method_cases import run_of
from support.partitioned import CPU, Case, Found, check_changes, check_changes_nothing, check_training, try_in_group
from support.stepping import Stepping, stepping
from support.training import PROMPT, make_run
from torch.distributed.tensor import DTensor

SHARDED = EngineSpec(kind="Sharded")
OFFLOADED = EngineSpec(kind="Sharded", offload_parameters="Cpu")
WHOLE = {"on the device": SHARDED, "offloaded": OFFLOADED}
OTHERS = ("lora", "words")
"""Frozen weights beside trained ones, and a constraint on trained ones; the matrix has every technique."""


def holds(one: Stepping) -> dict[str, int]:
    """Numbers in this process between two steps."""
    engine: Any = one.engine
    parameters = list(one.module.parameters())
    return {
        "shards": sum(value.to_local().numel() for value in parameters if isinstance(value, DTensor)),
        "moments": sum(state["exp_avg"].to_local().numel() for state in engine._optimizer.state.values()),
        "elsewhere": sum(value.numel() for value in engine._bare.parameters.values()),
    }


def cases() -> list[Case]:
    training = {"ema": True, "gradientAccumulationSteps": 2, "learningRate": 1e-3, "batchSize": 1}
    method = {"dreamBooth": {"prompt": PROMPT, "trainTextEncoder": True}}
    whole = make_run("dreamBooth", method=method, training=training)
    others = {name: run_of(name, batch=1, training={"ema": True, "learningRate": 1e-3}) for name in OTHERS}
    return [
        *(
            Case(name, whole, engine, holds, changes=engine is SHARDED)
            for name, engine in zip(WHOLE, (SHARDED, OFFLOADED), strict=True)
        ),
        *(Case(name, run, SHARDED, holds, before=2, after=1) for name, run in others.items()),
    ]


@pytest.fixture(scope="module")
def found(tiny_sd: Path, pictures: Path) -> Iterator[Callable[[str], list[Found]]]:
    """What each of two processes finds of a case; looked for once."""
    every = {case.name: case for case in cases()}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield cache(lambda name: in_group(pool, 2, try_in_group, every[name], tiny_sd, pictures))


@pytest.mark.parametrize("case", [*WHOLE, *OTHERS])
def test_it_is_the_same_training(case: str, found: Callable[[str], list[Found]]) -> None:
    check_training(found(case))


@pytest.mark.parametrize("case", [*WHOLE, *OTHERS])
def test_it_goes_on_from_its_checkpoint_to_the_bit(case: str, found: Callable[[str], list[Found]]) -> None:
    assert [one.resumed for one in found(case)] == [True, True]


@pytest.mark.parametrize("case", ["on the device"])
def test_engines_go_on_from_each_others_checkpoints(case: str, found: Callable[[str], list[Found]]) -> None:
    check_changes(found(case))


@pytest.mark.parametrize("case", [*WHOLE, *OTHERS])
def test_nothing_changes_by_looking_nor_by_a_bad_step(case: str, found: Callable[[str], list[Found]]) -> None:
    check_changes_nothing(found(case))


@pytest.mark.parametrize("case", [*WHOLE, *OTHERS])
def test_each_process_has_its_part(case: str, found: Callable[[str], list[Found]]) -> None:
    """Of everything, frozen weights included; and nobody keeps the whole beside it."""
    first, second = (one.held for one in found(case))
    assert first["shards"] + second["shards"] == first["whole"]
    assert abs(first["shards"] - second["shards"]) <= 0.01 * first["whole"]
    assert first["elsewhere"] == second["elsewhere"] == 0
    if case in WHOLE:
        assert first["moments"] == first["shards"]


def test_blocks_are_those_of_the_model(tiny_sd: Path) -> None:
    family = load_family(tiny_sd, CPU)
    unet, text = family.parts["unet"], family.parts["text_encoder"]
    mid = unet.mid_block
    assert set(blocks(unet)) == {*unet.down_blocks, *unet.up_blocks, *mid.attentions, *mid.resnets}
    assert list(blocks(text)) == list(text.text_model.encoder.layers)


@pytest.mark.parametrize("optimizer", ["AdamW8bit", "Adafactor", "Prodigy"])
def test_an_optimizer_that_looks_at_whole_weights_is_refused(optimizer: str, tiny_sd: Path, pictures: Path) -> None:
    training = {"optimizer": {"name": optimizer}, "learningRate": 1.0 if optimizer == "Prodigy" else 1e-3}
    with pytest.raises(ConfigurationError, match=f"name is {optimizer}, but with engine.kind Sharded each process"):
        stepping(make_run(training=training), ShardedEngine(SHARDED, CPU, ALONE), tiny_sd, pictures)
