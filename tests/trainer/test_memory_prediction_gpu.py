"""On a GPU: the memory that a training is predicted to take, beside what torch's allocator gives it there."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from finetune_api.engine import EngineSpec
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.planning.describing import describe
from finetune_trainer.planning.memory import predict
from support.prepared import prepared
from test_memory_prediction import CASES, run_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CUDA = torch.device("cuda")
WITHIN = 0.15


@pytest.mark.parametrize("name", CASES)
def test_predicted_is_what_torch_allocates(name: str, tiny_sd: Path, pictures: Path) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    others = torch.cuda.memory_allocated()
    # large enough for the workspace of cuBLAS, which torch allocates too, to be little of it
    run = run_of(name, resolution=512)
    made = prepared(run, tiny_sd, pictures, "cuda")
    spec, batches = run.training, made.samples.step(0)
    described = describe(made.module, made.family.parts.values(), made.groups, spec, batches, CUDA)
    predicted = predict(described, EngineSpec(kind="Eager"), spec.gradient_checkpointing).total

    engine = EagerEngine(CUDA)
    engine.prepare(made.module, made.groups, spec, batches)
    # an optimizer makes its state in the first step
    engine.step(batches, 1.0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    engine.step(batches, 1.0)
    torch.cuda.synchronize()
    assert predicted == pytest.approx(torch.cuda.max_memory_allocated() - others, rel=WITHIN)
