"""Every technique × every engine × every kind of base model: it trains, and it trains what it says and nothing else."""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from finetune_api import TrainingRun
from pydantic import ValidationError
from support.matrix import ENGINES, METHODS, train_cell, train_cell_together
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
UNSUPPORTED: Mapping[str, dict[str, object]] = {
    "optimizer offload": {"kind": "Eager", "offloadOptimizer": "Cpu"},
    "parameter offload": {"kind": "Replicated", "offloadParameters": "Cpu"},
    "graphs in a group": {"kind": "Captured", "processesPerNode": 2},
}
"""What no technique and no base model has with an engine. Admission refuses it: spec.engine of each."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build(tmp_path_factory.mktemp("model"), **settings) for name, (build, settings) in FAMILIES.items()}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that have torch loaded already."""
    with ProcessPoolExecutor(max(ENGINES.values()), mp_context=get_context("spawn")) as executor:
        yield executor


def run_of(method: str, **sections: dict[str, object]) -> TrainingRun:
    technique, settings = METHODS[method]
    prompt = {} if technique == "textualInversion" else {"prompt": PROMPT}
    training = {"steps": 2, "learningRate": 0.01, "batchSize": 2}
    return make_run(technique, method={technique: prompt | settings}, training=training, **sections)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_cell(
    method: str,
    family: str,
    engine: str,
    models: dict[str, Path],
    pictures: Path,
    pool: ProcessPoolExecutor,
    tmp_path: Path,
) -> None:
    run, size, model = run_of(method), ENGINES[engine], models[family]
    if size == 1:
        trained = [train_cell(run, None, model, pictures, tmp_path)]
    else:
        trained = train_cell_together(pool, run, size, model, pictures, tmp_path)
    for process in trained:
        assert len(process.losses) == 2
        assert all(math.isfinite(loss) for loss in process.losses)
        assert process.changed == frozenset().union(*process.groups.values())
        assert all(process.groups.values())
    assert all(process == trained[0] for process in trained), "the copies tell the same"


@pytest.mark.parametrize("engine", UNSUPPORTED)
def test_a_cell_that_is_not_supported_is_refused(engine: str) -> None:
    with pytest.raises(ValidationError, match=r"needs kind: Deep|needs zeroStage: 3 or|cannot be used with"):
        run_of("lora", engine=UNSUPPORTED[engine])
