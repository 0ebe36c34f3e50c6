"""What an engine cannot do is one table: admission refuses it, the run does before it draws, and so does the engine."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from finetune_api.engine import OPTIMIZERS, EngineKind, EngineSpec
from finetune_api.training import OptimizerSpec
from finetune_trainer.engines import make_engine
from finetune_trainer.engines.checking import check_engine
from finetune_trainer.errors import ConfigurationError
from support.training import make_run
from torch import nn

CPU = torch.device("cpu")
ALL: tuple[str, ...] = get_args(OptimizerSpec.model_fields["name"].annotation)
CELLS = [(kind, name) for kind in get_args(EngineKind) for name in ALL]


@pytest.mark.parametrize(("kind", "name"), CELLS)
def test_optimizers_are_those_that_admission_knows(kind: EngineKind, name: str) -> None:
    spec = make_run(training={"steps": 1, "learningRate": 1.0, "optimizer": {"name": name}}).training
    engine, module = EngineSpec(kind=kind), nn.Linear(2, 2)
    if name in OPTIMIZERS.get(kind, ALL):
        check_engine(engine, spec, module, CPU)
        return
    with pytest.raises(ConfigurationError, match=rf"training.optimizer.name is {name}.*; use AdamW"):
        check_engine(engine, spec, module, CPU)
    with pytest.raises(ConfigurationError, match=rf"training.optimizer.name is {name}"):
        make_engine(engine, CPU).prepare(module, [], spec, [])


def test_a_disk_is_asked_for_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its asynchronous I/O, which is C++, DeepSpeed cannot write to one."""
    from deepspeed.git_version_info import installed_ops

    engine = EngineSpec(kind="DeepSpeed", zero_stage=3, offload_parameters="Nvme", nvme_path="/fast")
    spec = make_run(training={"steps": 1}).training
    monkeypatch.setitem(installed_ops, "async_io", True)
    check_engine(engine, spec, nn.Linear(2, 2), CPU)
    monkeypatch.setitem(installed_ops, "async_io", False)
    with pytest.raises(ConfigurationError, match=r"offloadParameters is Nvme, but .* DS_BUILD_AIO=1 .* or use Cpu"):
        check_engine(engine, spec, nn.Linear(2, 2), CPU)
