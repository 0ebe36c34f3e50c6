"""Engines: how steps are executed, and the one place that chooses among them."""

from __future__ import annotations

import torch
from finetune_api.engine import EngineSpec

from finetune_trainer.engines.base import Engine, EngineState, NonFiniteLoss, StepResult
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.group.team import ALONE, Team

__all__ = ["Engine", "EngineState", "NonFiniteLoss", "StepResult", "make_engine"]


def make_engine(spec: EngineSpec, device: torch.device, team: Team = ALONE) -> Engine:
    """The engine for `spec` in the group `team`.

    Raises:
        ConfigurationError: it asks for offload, which this trainer does not have.
    """
    if spec.kind == "DeepSpeed":
        from finetune_trainer.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(spec, device, team)
    if spec.offload_optimizer != "None" or spec.offload_parameters != "None":
        raise ConfigurationError(
            "engine: this trainer keeps everything on its device; remove offloadOptimizer and offloadParameters"
        )
    if team.size == 1:
        return EagerEngine(device)
    from finetune_trainer.engines.replicated import ReplicatedEngine

    return ReplicatedEngine(device, team)
