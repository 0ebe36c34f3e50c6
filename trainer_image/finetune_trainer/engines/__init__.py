"""Engines: how steps are executed, and the one place that chooses among them."""

from __future__ import annotations

import torch
from finetune_api.engine import EngineSpec

from finetune_trainer.engines.base import Engine, EngineState, NonFiniteLoss, StepResult
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.errors import ConfigurationError

__all__ = ["Engine", "EngineState", "NonFiniteLoss", "StepResult", "make_engine"]


def make_engine(spec: EngineSpec, device: torch.device) -> Engine:
    """The engine for `spec`.

    Raises:
        ConfigurationError: it asks for processes or offload that this trainer does not have.
    """
    alone = spec.nodes == 1 and spec.processes_per_node == 1
    if not alone or spec.offload_optimizer != "None" or spec.offload_parameters != "None":
        raise ConfigurationError(
            "engine: this trainer runs one process without offload; set nodes and processesPerNode to 1 and remove "
            "offloadOptimizer and offloadParameters"
        )
    return EagerEngine(device)
