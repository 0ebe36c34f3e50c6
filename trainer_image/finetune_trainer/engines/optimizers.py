"""Optimizers by name, and their state as tensors."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune_trainer.engines.adamw_8bit import AdamW8bit
from finetune_trainer.engines.copies import host_copy
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.methods.base import ParameterGroup

SMALLEST_PRODIGY_RATE = 0.01
OWN_NUMBERS = ("d", "d_max", "d_numerator", "d_denom", "d_hat", "k")
"""What Prodigy finds out and keeps beside its groups' settings."""
GROUP = "group/"
"""Before the number of a group in the names of `optimizer_state`; a parameter's name holds no slash."""


def rates_of(spec: ResolvedTraining, groups: Sequence[ParameterGroup]) -> list[float]:
    """Learning rate of each group.

    Raises:
        ConfigurationError: they do not suit the optimizer.
    """
    rates = [spec.learning_rate if group.learning_rate is None else group.learning_rate for group in groups]
    check_rates(spec, rates)
    return rates


def check_rates(spec: ResolvedTraining, rates: Collection[float]) -> None:
    """Raises ConfigurationError where the training's learning rate, or `rates` of single groups, do not suit the
    optimizer."""
    if spec.optimizer.name == "Prodigy":
        if spec.learning_rate < SMALLEST_PRODIGY_RATE:
            raise ConfigurationError(
                f"training.learningRate is {spec.learning_rate:g} (the job's or the profile's), but the optimizer "
                "Prodigy multiplies it with a rate that it finds itself; use 1, or remove the field"
            )
        if set(rates) - {spec.learning_rate}:
            raise ConfigurationError(
                f"textEncoderLearningRate is {max(set(rates) - {spec.learning_rate}):g}, but the optimizer Prodigy "
                "finds one rate for all weights; remove the field, or use training.optimizer.name AdamW"
            )


def make_optimizer(spec: ResolvedTraining, groups: Sequence[ParameterGroup], rates: Sequence[float]) -> Optimizer:
    """The optimizer that training.optimizer names, over `groups` with their rates and weight decays.

    Adafactor is transformers', with a fixed rate and without scaling by the parameter's size, as diffusion models are
    fine-tuned with it: torch's own always scales, and a parameter that starts at zero would hardly move. Prodigy is
    its authors', with bias correction and the safeguard against warm-up, as in Diffusers' and kohya's trainings.
    """
    options = spec.optimizer
    of_groups: list[dict[str, Any]] = [
        {
            "params": list(group.parameters.values()),
            "lr": rate,
            "weight_decay": options.weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group, rate in zip(groups, rates, strict=True)
    ]
    shared = {"lr": spec.learning_rate, "weight_decay": options.weight_decay}
    moments = {"betas": (options.beta1, options.beta2), "eps": options.epsilon}
    if options.name == "AdamW":
        return torch.optim.AdamW(of_groups, **shared, **moments, fused=True)
    if options.name == "AdamW8bit":
        return AdamW8bit(of_groups, **shared, **moments)
    if options.name == "Adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(of_groups, **shared, scale_parameter=False, relative_step=False)
    from prodigyopt import Prodigy

    # it prints that it decouples weight decay, in the middle of our log
    with contextlib.redirect_stdout(io.StringIO()):
        return Prodigy(of_groups, **shared, **moments, use_bias_correction=True, safeguard_warmup=True)


def step_unless(optimizer: Optimizer, skipped: Tensor) -> None:
    """A step of `optimizer`, which changes nothing where `skipped` (bool scalar on the device) is true. torch's own
    AdamW and ours find that on the device; the other two count their steps in Python, and make the host wait for the
    answer."""
    if isinstance(optimizer, torch.optim.AdamW | AdamW8bit):
        optimizer.found_inf = skipped.float()
        optimizer.step()
    elif not bool(skipped):
        optimizer.step()


def rate_in_use(optimizer: Optimizer) -> float:
    """What the next step multiplies an update with in the first group: the learning rate, and Prodigy's own
    estimate."""
    group = optimizer.param_groups[0]
    return float(group["lr"] * group.get("d", 1.0))


def optimizer_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of all that the optimizer remembers, on the CPU: parameter's name (or GROUP and its number), a slash, the
    value's name. Python's numbers become int64 or float64, which no optimizer's own tensors are."""
    state = {
        f"{name}/{key}": as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    for index, group in enumerate(optimizer.param_groups):
        state |= {f"{GROUP}{index}/{key}": as_tensor(group[key]) for key in OWN_NUMBERS if key in group}
    return state


def load_optimizer_state(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimizer_state` gave."""
    values: dict[str, dict[str, Tensor]] = {}
    for path, value in state.items():
        name, _, key = path.rpartition("/")
        values.setdefault(name, {})[key] = value
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {key: as_value(value, parameter) for key, value in values.get(name, {}).items()}
    for index, group in enumerate(optimizer.param_groups):
        group.update({key: value.item() for key, value in values.get(f"{GROUP}{index}", {}).items()})


def as_tensor(value: Tensor | int | float) -> Tensor:
    """A copy on the CPU, as `host_copy` makes it."""
    if isinstance(value, Tensor):
        return host_copy(value)
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def as_value(value: Tensor, parameter: Tensor) -> Tensor | int | float:
    """The optimizer's value as it would have made it: moments laid out like the parameter, Python's numbers as such."""
    if value.dtype in (torch.int64, torch.float64):
        return value.item()
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype, memory_format=torch.preserve_format).copy_(value)
