"""Engines: how steps are executed. The room planning/ chooses among them, making.py makes them."""

from finetune_trainer.engines.base import Engine, EngineState, NonFiniteLoss, StepResult
from finetune_trainer.engines.making import make_engine

__all__ = ["Engine", "EngineState", "NonFiniteLoss", "StepResult", "make_engine"]
