"""How long a training is, and its learning rate: pure functions of the step."""

from __future__ import annotations

import math

from finetune_api.training import SchedulerSpec, TrainingSpec

from finetune_trainer.errors import ConfigurationError


def learning_rate_factor(spec: SchedulerSpec, step: int, total_steps: int) -> float:
    """What the learning rate is multiplied by in optimizer step `step`, in [0, 1].

    Warm-up rises linearly and reaches 1 in step `warmup_steps` (0 is the first step). Linear and Cosine then fall so
    that they would be 0 just after the last step.
    """
    if step < spec.warmup_steps:
        return (step + 1) / (spec.warmup_steps + 1)
    if spec.name == "Constant":
        return 1.0
    done = (step - spec.warmup_steps) / (total_steps - spec.warmup_steps)
    return 1 - done if spec.name == "Linear" else 0.5 * (1 + math.cos(math.pi * done))


def total_steps(spec: TrainingSpec, items: int, processes: int = 1) -> int:
    """Optimizer steps: `steps`, or as many as `epochs` passes of all `processes` over `items` (pictures times crops)
    take.

    Raises:
        ValueError: neither is set.
    """
    if spec.steps is not None:
        return spec.steps
    if spec.epochs is None:
        raise ValueError("training.steps or training.epochs must be set in a TrainingRun")
    return math.ceil(items * spec.epochs / (spec.batch_size * spec.gradient_accumulation_steps * processes))


def check_warmup(spec: SchedulerSpec, total_steps: int) -> None:
    """A length in epochs becomes a number of steps only here, where the pictures are known.

    Raises:
        ConfigurationError: the warm-up is as long as the training.
    """
    if spec.warmup_steps >= total_steps:
        raise ConfigurationError(
            f"training.scheduler.warmupSteps is {spec.warmup_steps}, but the whole training has {total_steps} steps: "
            "the learning rate would never arrive; use fewer warm-up steps, or more epochs"
        )
