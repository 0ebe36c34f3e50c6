"""ZeRO in all its stages, with offload, does what copies in each process do, and asks no compiler for anything."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from finetune_api import TrainingRun
from safetensors.torch import load
from support.groups import in_group
from support.method_cases import run_of
from support.partitioned import Case, Found, check_changes, check_looks, check_training, try_in_group
from support.training import PRIOR, PROMPT, make_run
from support.zero import processes_without_compiler, train_with_zero, zero, zero_holds

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")

LEAST = "stage 3, all offloaded"
STAGES = {"stage 1": zero(1), "stage 2, optimizer offloaded": zero(2, "Cpu"), LEAST: zero(3, "Cpu", "Cpu")}
OTHERS = ("lora", "words", "hypernetwork")
DREAMBOOTH: dict[str, object] = {"prompt": PROMPT, "trainTextEncoder": True}


def cases() -> list[Case]:
    training = {"ema": True, "gradientAccumulationSteps": 2, "learningRate": 1e-3, "batchSize": 1}
    whole = make_run("dreamBooth", method={"dreamBooth": DREAMBOOTH}, training=training)
    others = {name: run_of(name, batch=1, training={"ema": True, "learningRate": 1e-3}) for name in OTHERS}
    return [
        *(Case(name, whole, engine, zero_holds, changes=True) for name, engine in STAGES.items()),
        *(Case(name, run, STAGES[LEAST], zero_holds, before=2, after=1) for name, run in others.items()),
    ]


@pytest.fixture(scope="module")
def found(
    tiny_sd: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, list[Found]], Path]]:
    """What each of two processes has found, by case; and the file that a compiler would have written."""
    with processes_without_compiler(2, tmp_path_factory.mktemp("zero")) as (pool, asked):
        each = in_group(pool, 2, try_in_group, cases(), tiny_sd, pictures)
    yield {name: [one[name] for one in each] for name in each[0]}, asked


@pytest.mark.parametrize("case", [*STAGES, *OTHERS])
def test_it_is_the_same_training(case: str, found: tuple[dict[str, list[Found]], Path]) -> None:
    check_training(found[0][case])


@pytest.mark.parametrize("case", [*STAGES, *OTHERS])
def test_it_goes_on_from_its_checkpoint_to_the_bit(case: str, found: tuple[dict[str, list[Found]], Path]) -> None:
    assert [one.resumed for one in found[0][case]] == [True, True]


@pytest.mark.parametrize("case", STAGES)
def test_engines_go_on_from_each_others_checkpoints(case: str, found: tuple[dict[str, list[Found]], Path]) -> None:
    check_changes(found[0][case])


@pytest.mark.parametrize("case", [*STAGES, *OTHERS])
def test_one_process_draws_alone_with_the_averages(case: str, found: tuple[dict[str, list[Found]], Path]) -> None:
    check_looks(found[0][case])


def test_each_process_has_its_part(found: tuple[dict[str, list[Found]], Path]) -> None:
    """Of the optimizer in every stage, of the parameters in stage 3, where but the smallest are nowhere whole."""
    for name, engine in STAGES.items():
        for one in found[0][name]:
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


def test_frozen_parameters_are_cut_too(found: tuple[dict[str, list[Found]], Path]) -> None:
    for one in found[0]["lora"]:
        held = one.held
        assert held["master"] < 0.2 * held["shares"], "little is trained"
        assert held["shares"] <= 0.52 * held["whole"]


def test_no_compiler_is_asked(found: tuple[dict[str, list[Found]], Path]) -> None:
    _, asked = found
    assert not asked.exists(), asked.read_text()
    assert list(asked.parent.glob("extensions/**/*")) == []


def run_for(kind: str) -> TrainingRun:
    run = make_run(
        "dreamBooth",
        method={"dreamBooth": DREAMBOOTH | {"priorPreservation": PRIOR}},
        training={"steps": 4, "batchSize": 1, "learningRate": 1e-3, "ema": True},
        checkpoints={"everySteps": 2},
    )
    return run.model_copy(update={"engine": STAGES[LEAST]}) if kind == "zero" else run


def test_a_whole_training_is_stopped_and_goes_on(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    """With class pictures and the text encoder, from the base model to the exported files; rank 1 alone is asked to
    stop. A single process then goes on with the same checkpoint."""
    with processes_without_compiler(2, tmp_path / "processes") as (pool, _):

        def trained(folder: str, stops_after: int | None = None) -> list[object]:
            return in_group(
                pool, 2, train_with_zero, run_for("zero"), tiny_sd, pictures, tmp_path / folder, stops_after
            )

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
