"""What an engine that the run names cannot do, found before anything is drawn for the training."""

from __future__ import annotations

import torch
from finetune_api.engine import EngineSpec
from finetune_api.training_run import ResolvedTraining
from torch import nn

from finetune_trainer.engines.captured import not_capturable
from finetune_trainer.engines.deepspeed_disk import check_disk
from finetune_trainer.engines.deepspeed_library import load_deepspeed
from finetune_trainer.engines.deepspeed_settings import check_settings
from finetune_trainer.engines.partitioned import check_optimizer
from finetune_trainer.engines.precision import precision_of
from finetune_trainer.engines.trained_halves import check_sums
from finetune_trainer.errors import ConfigurationError


def check_engine(engine: EngineSpec, spec: ResolvedTraining, module: nn.Module, device: torch.device) -> None:
    """The engine asks the same when it is prepared; by then class pictures have been drawn for hours.

    Args:
        module: the base model, before a technique is installed.

    Raises:
        ConfigurationError: the engine does not work with these settings, or is not installed.
    """
    if engine.kind in ("Captured", "Compiled"):
        reason = not_capturable(spec, module)
        if reason is not None:
            raise ConfigurationError(f"engine.kind {engine.kind}: {reason}")
    check_sums(spec, spec.gradient_accumulation_steps)
    if engine.kind in ("Sharded", "DeepSpeed"):
        check_optimizer(spec, engine.kind)
    if engine.kind == "DeepSpeed":
        check_settings(engine, spec, precision_of(spec, device), device.type)
        load_deepspeed(device)
        check_disk(engine, device.type)
