"""Every technique × every engine × every kind of base model: it trains, and it trains what it says and nothing else."""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from finetune_api import TrainingRun
from pydantic import ValidationError
from support.matrix import CUT, ENGINES, METHODS, Trained, train_cell, train_cell_together
from support.tiny_sd import build_tiny_sd
from support.tiny_sdxl import build_tiny_sdxl
from support.training import PROMPT, make_run

FAMILIES = {
    "SD, epsilon": (build_tiny_sd, {}),
    "SD, v and zero terminal SNR": (
        build_tiny_sd,
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ),
    "SDXL": (build_tiny_sdxl, {}),
    "SDXL, v and zero terminal SNR": (
        build_tiny_sdxl,
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
}
ONE_OF_EACH = ("SD, v and zero terminal SNR", "SDXL")
"""What cuts weights has nothing to do with noise: one base model of each architecture for these engines."""
UNSUPPORTED: Mapping[str, dict[str, object]] = {
    "optimizer offload": {"kind": "Eager", "offloadOptimizer": "Cpu"},
    "parameter offload": {"kind": "Replicated", "offloadParameters": "Cpu"},
    "graphs in a group": {"kind": "Captured", "processesPerNode": 2},
    "parameters of copies on the host": {"kind": "DeepSpeed", "zeroStage": 2, "offloadParameters": "Cpu"},
}
"""What no technique and no base model has with an engine. Admission refuses it: spec.engine of each."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build(tmp_path_factory.mktemp("model"), **settings) for name, (build, settings) in FAMILIES.items()}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that have torch loaded already."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor


def run_of(method: str, **sections: dict[str, object]) -> TrainingRun:
    technique, settings = METHODS[method]
    prompt = {} if technique == "textualInversion" else {"prompt": PROMPT}
    training = {"steps": 2, "learningRate": 0.01, "batchSize": 2}
    return make_run(technique, method={technique: prompt | settings}, training=training, **sections)


@pytest.fixture(scope="module")
def found(
    models: dict[str, Path], pictures: Path, pool: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str, str], list[Trained]]:
    """What each process of an engine tells of a cell; trained once."""

    def train(method: str, family: str, engine: str) -> list[Trained]:
        (size, spec), folder = ENGINES[engine], tmp_path_factory.mktemp("cell")
        run, model = run_of(method, engine=spec), models[family]
        if size == 1:
            return [train_cell(run, None, model, pictures, folder)]
        return train_cell_together(pool, run, size, model, pictures, folder)

    return cache(train)


def cells() -> Iterator[ParameterSet]:
    for method, family, engine in product(METHODS, FAMILIES, ENGINES):
        if engine in CUT and family not in ONE_OF_EACH:
            continue
        installed = engine != "ZeRO-3" or find_spec("deepspeed") is not None
        skip = pytest.mark.skipif(not installed, reason="DeepSpeed is not installed")
        yield pytest.param(method, family, engine, marks=skip)


@pytest.mark.parametrize(("method", "family", "engine"), list(cells()))
def test_a_cell(method: str, family: str, engine: str, found: Callable[[str, str, str], list[Trained]]) -> None:
    trained = found(method, family, engine)
    assert len(trained) == ENGINES[engine][0]
    for process in trained:
        assert len(process.losses) == 2
        assert all(math.isfinite(loss) for loss in process.losses)
        assert process.changed == frozenset().union(*process.groups.values())
        assert all(process.groups.values())
    assert all(process == trained[0] for process in trained), "all processes tell the same"
    if engine in CUT:
        assert trained[0].losses == pytest.approx(found(method, family, "replicated")[0].losses, rel=1e-3)


@pytest.mark.parametrize("engine", UNSUPPORTED)
def test_a_cell_that_is_not_supported_is_refused(engine: str) -> None:
    with pytest.raises(ValidationError, match=r"needs kind: Deep|needs zeroStage: 3 or|cannot be used with"):
        run_of("lora", engine=UNSUPPORTED[engine])
