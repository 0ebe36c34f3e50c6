"""When a GPU's memory does not suffice after all."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from finetune_trainer.engines.planning import Facts, Plan, next_leaner
from finetune_trainer.errors import ConfigurationError


@dataclass(frozen=True)
class Fall:
    """From a plan that ran out of memory to the next leaner one."""

    failed: Plan
    to: Plan


class OutOfMemory(ConfigurationError):
    """A step, or what comes before the first, did not fit. Weights may be half updated: everything that holds them is
    of no use any more."""

    def __init__(self, message: str, fall: Fall | None) -> None:
        super().__init__(message)
        self.fall = fall
        """What to try in its place, from the last checkpoint or the start; None where nothing is left to try."""


@contextmanager
def memory_suffices(facts: Facts, plan: Plan, before: Fall | None) -> Iterator[None]:
    """Turns what torch raises within into an OutOfMemory.

    Args:
        before: what led to `plan`. Once is enough. In a group nothing is tried: the others may be in the middle of a
            step.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        said = f"spec.engine: {plan.words} ran out of the GPU's memory"
        if before is not None:
            said += f", and so did {before.failed.words} before"
        leaner = next_leaner(facts, plan) if before is None and facts.processes == 1 else None
        fall = Fall(plan, leaner) if leaner is not None else None
        raise OutOfMemory(f"{said}; {_remedies(facts, plan)}", fall) from error


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Also where another error came of it: a recording that breaks off is told by the end of the recording."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def release_memory() -> None:
    """Gives back what nobody holds any more. To be called outside of the `except` that caught an OutOfMemory: what it
    was raised from holds everything."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _remedies(facts: Facts, plan: Plan) -> str:
    ways = [
        "training.gradientCheckpointing true" if not plan.checkpointing else "",
        "a smaller training.batchSize" if facts.samples > 1 else "",
        "a smaller dataset.resolution",
        "training.optimizer.name AdamW8bit",
        "engine.kind DeepSpeed with offload" if plan.kind != "DeepSpeed" else "",
        "a GPU with more memory",
    ]
    *others, last = (way for way in ways if way)
    return f"use {', '.join(others)}, or {last}"
