"""ZeRO in all its stages, with offload, does what copies in each process do, and asks no compiler for anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from finetune_api import TrainingRun
from safetensors.torch import load
from support.groups import Trained, in_group
from support.method_cases import run_of
from support.partitioned import Case, Found, check_changes, check_changes_nothing, check_training
from support.training import PRIOR, PROMPT, make_run
from support.zero import processes_without_compiler, train_with_zero, try_zero, zero, zero_holds

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")

LEAST = "stage 3, all offloaded"
STAGES = {"stage 1": zero(1), "stage 2, optimizer offloaded": zero(2, "Cpu"), LEAST: zero(3, "Cpu", "Cpu")}
OTHERS = ("lora", "words")
"""Frozen weights beside trained ones, and a constraint on trained ones; the matrix has every technique."""
CHANGE = ("stage 2, optimizer offloaded", LEAST)
"""Stage 1 keeps its state as stage 2 does."""
DREAMBOOTH: dict[str, object] = {"prompt": PROMPT, "trainTextEncoder": True}


def cases() -> list[Case]:
    training = {"ema": True, "gradientAccumulationSteps": 2, "learningRate": 1e-3, "batchSize": 1}
    whole = make_run("dreamBooth", method={"dreamBooth": DREAMBOOTH}, training=training)
    half = make_run("dreamBooth", method={"dreamBooth": DREAMBOOTH}, training=training | {"precision": "bf16"})
    others = {name: run_of(name, batch=1, training={"ema": True, "learningRate": 1e-3}) for name in OTHERS}
    return [
        *(Case(name, whole, engine, zero_holds, changes=name in CHANGE) for name, engine in STAGES.items()),
        Case("bf16", half, STAGES[LEAST], zero_holds),
        *(Case(name, run, STAGES[LEAST], zero_holds, before=2, after=1) for name, run in others.items()),
    ]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProcessPoolExecutor, Path]]:
    with processes_without_compiler(2, tmp_path_factory.mktemp("zero")) as pool_and_file:
        yield pool_and_file


@pytest.fixture(scope="module")
def found(tiny_sd: Path, pictures: Path, processes: tuple[ProcessPoolExecutor, Path]) -> Callable[[str], list[Found]]:
    """What each of two processes finds of a case; looked for once."""
    every = {case.name: case for case in cases()}
    return cache(lambda name: in_group(processes[0], 2, try_zero, every[name], tiny_sd, pictures))


@pytest.mark.parametrize("case", [*STAGES, *OTHERS])
def test_it_is_the_same_training(case: str, found: Callable[[str], list[Found]]) -> None:
    check_training(found(case))


@pytest.mark.parametrize("case", [*STAGES, *OTHERS])
def test_it_goes_on_from_its_checkpoint_to_the_bit(case: str, found: Callable[[str], list[Found]]) -> None:
    assert [one.resumed for one in found(case)] == [True, True]


@pytest.mark.parametrize("case", CHANGE)
def test_engines_go_on_from_each_others_checkpoints(case: str, found: Callable[[str], list[Found]]) -> None:
    check_changes(found(case))


@pytest.mark.parametrize("case", [*STAGES, *OTHERS])
def test_nothing_changes_by_looking_nor_by_a_bad_step(case: str, found: Callable[[str], list[Found]]) -> None:
    check_changes_nothing(found(case))


def test_each_process_has_its_part(found: Callable[[str], list[Found]]) -> None:
    """Of the optimizer in every stage, of the parameters in stage 3, where but the smallest are nowhere whole."""
    for name, engine in STAGES.items():
        for one in found(name):
            held, half = one.held, one.held["whole"] / 2
            assert held["master"] == held["moments"]
            assert half <= held["master"] <= 1.01 * half
            assert held["optimizer offloaded"] == (engine.offload_optimizer == "Cpu")
            if engine.zero_stage == 3:
                assert held["live"] == held["kept whole"] < 0.02 * held["whole"]
                assert half <= held["shares"] <= 1.01 * half
                assert held["parameters offloaded"] == 1
            else:
                assert held["live"] == held["whole"]


def test_frozen_parameters_are_cut_too(found: Callable[[str], list[Found]]) -> None:
    for one in found("lora"):
        held = one.held
        assert held["master"] < 0.2 * held["shares"], "little is trained"
        assert held["shares"] <= 0.52 * held["whole"]


def test_no_compiler_is_asked(found: Callable[[str], list[Found]], processes: tuple[ProcessPoolExecutor, Path]) -> None:
    found(LEAST)
    _, asked = processes
    assert not asked.exists(), asked.read_text()
    assert list(asked.parent.glob("extensions/**/*")) == []


def test_half_precision(found: Callable[[str], list[Found]]) -> None:
    """Of weights in bfloat16 beside float32 masters that begin as the model's own weights do."""
    for one in found("bf16"):
        np.testing.assert_allclose(one.losses, one.expected_losses, rtol=2e-2)
        assert one.losses != one.expected_losses
        assert (one.resumed, one.unchanged, one.settled) == (True, True, True)
        assert one.update <= 0.2


def test_one_process_needs_no_others(tiny_sd: Path, pictures: Path) -> None:
    """Offload is for small GPUs, of which there may be one."""
    run = make_run("dreamBooth", training={"ema": True, "batchSize": 2})
    case = Case("alone", run, STAGES[LEAST], zero_holds, before=2, after=1)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        one = pool.submit(try_zero, None, case, tiny_sd, pictures).result(timeout=300)
    check_training([one])
    check_changes_nothing([one])
    assert one.resumed
    assert one.held["shares"] == one.held["whole"]
    assert one.held["live"] < 0.02 * one.held["whole"]


def run_for(kind: str) -> TrainingRun:
    run = make_run(
        "dreamBooth",
        method={"dreamBooth": DREAMBOOTH | {"priorPreservation": PRIOR}},
        training={"steps": 4, "batchSize": 1, "learningRate": 1e-3, "ema": True},
        checkpoints={"everySteps": 2},
    )
    return run.model_copy(update={"engine": STAGES[LEAST]}) if kind == "zero" else run


def test_a_whole_training_is_stopped_and_goes_on(
    processes: tuple[ProcessPoolExecutor, Path], tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    """With class pictures and the text encoder, from the base model to the exported files: the same bytes, and of the
    form that another engine's have."""
    pool, run = processes[0], run_for("zero")

    def trained(folder: str, stops_after: int | None = None) -> list[Trained]:
        return in_group(pool, 2, train_with_zero, run, tiny_sd, pictures, tmp_path / folder, stops_after)

    whole, stopped, resumed = trained("whole"), trained("torn", 3), trained("torn")
    (alone,) = in_group(pool, 1, train_with_zero, run_for("eager"), tiny_sd, pictures, tmp_path / "alone")
    assert [one.interrupted for one in stopped] == [True, True]
    assert [one.resumed_from for one in resumed] == [3, 3]
    assert resumed[0].weights == resumed[1].weights == whole[0].weights
    assert resumed[0].losses == whole[0].losses
    names = [name for name in whole[0].weights if name.endswith(".safetensors")]
    assert {name.split("/")[1] for name in names} >= {"unet", "text_encoder"}
    for name in names:
        ours, theirs = load(whole[0].weights[name]), load(alone.weights[name])
        assert {key: value.dtype for key, value in ours.items()} == {key: value.dtype for key, value in theirs.items()}
