"""On a GPU, what is offloaded lies in the host's memory, and the training is that of the eager engine."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.engine import EngineSpec
from finetune_trainer.engines import make_engine
from finetune_trainer.engines.deepspeed import DeepSpeedEngine
from support.stepping import stepping
from support.training import PROMPT, make_run
from support.zero import zero

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
STEPS = 4


def trained(engine: EngineSpec, precision: str, model: Path, pictures: Path) -> tuple[list[float], set[str]]:
    """Losses; and where the float32 weights are that the optimizer updates."""
    run = make_run(
        "dreamBooth",
        method={"dreamBooth": {"prompt": PROMPT, "trainTextEncoder": True}},
        training={"learningRate": 1e-3, "precision": precision, "gradientAccumulationSteps": 2},
    )
    one = stepping(run, make_engine(engine, torch.device("cuda")), model, pictures, "cuda")
    losses = [float(one.step(number).loss) for number in range(STEPS)]
    held: Any = one.engine
    if isinstance(held, DeepSpeedEngine):
        return losses, {flat.device.type for flat in held._partitions.flats()}
    if engine.kind == "Sharded":
        return losses, {value.device.type for value in held._trained.values()}
    return losses, {value.device.type for value in one.module.parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("engine", "home"),
    [
        (zero(1), "cuda"),
        (zero(2, "Cpu"), "cpu"),
        (zero(3), "cuda"),
        (zero(3, "Cpu", "Cpu"), "cpu"),
        (EngineSpec(kind="Sharded"), "cuda"),
        (EngineSpec(kind="Sharded", offload_parameters="Cpu"), "cpu"),
    ],
)
def test_one_gpu(engine: EngineSpec, home: str, precision: str, tiny_sd: Path, pictures: Path) -> None:
    if engine.kind == "DeepSpeed" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    # a process has one group in its life
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        losses, homes = pool.submit(trained, engine, precision, tiny_sd, pictures).result(timeout=300)
    expected, _ = trained(EngineSpec(kind="Eager"), precision, tiny_sd, pictures)
    assert losses == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 2e-2)
    assert len(set(losses)) == STEPS
    assert homes == {home}
