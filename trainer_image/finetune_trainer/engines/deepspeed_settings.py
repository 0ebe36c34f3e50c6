"""What DeepSpeed is told for a run, and what it cannot do. Pure."""

from __future__ import annotations

import math
from typing import Any

from finetune_api.engine import EngineSpec
from finetune_api.training_run import ResolvedTraining

from finetune_trainer.engines.loss_scale import FIRST, INTERVAL
from finetune_trainer.engines.precision import Precision
from finetune_trainer.errors import ConfigurationError

LARGEST_BUCKET = 50_000_000
"""Gradients that travel together. DeepSpeed's own 500 million are for models a hundred times as large, and would take
half of a small GPU's memory."""
LIVE_PARAMETERS = 100_000_000
"""Parameters that stage 3 keeps whole in each process at a time, and how far it looks ahead for those needed again; in
a model of less than ten times as many a tenth of it. DeepSpeed's own bound of a thousand million is more than a whole
Stable Diffusion has, so that nothing would ever leave."""
LARGEST_WHOLE = 100_000
"""Parameters with fewer numbers stay whole in each process, as DeepSpeed has it: gathering them takes longer than they
save memory. In a model so small that these would be most of it, those with fewer than a thousandth of its numbers."""
DISK_AT_A_TIME = 30_000_000
"""Numbers, and the rest of the parameter that they end in, whose weights, moments and gradients are in memory at a time
when the optimizer's state is on a disk; in a model of less than ten times as many a tenth of it. DeepSpeed's own
bound of a thousand million is more than a whole Stable Diffusion has, and all of it would be in memory at once."""
DISK_BUFFERS = 5
"""Parameters that can be in memory at a time when they are on a disk. One or two are computed with."""


def check_settings(engine: EngineSpec, spec: ResolvedTraining, precision: Precision, device: str) -> None:
    """
    `device` is cpu or cuda.

    Raises:
        ConfigurationError: DeepSpeed, or ZeRO, does not work like that.
    """
    if precision == "fp16" and device == "cpu":
        raise ConfigurationError(
            "training.precision is fp16, which DeepSpeed does not support on a CPU; use bf16 or fp32, or a GPU"
        )
    disk = on_disk(engine)
    if disk and spec.ema:
        raise ConfigurationError(
            f"{disk[0]} is Nvme, and training.ema keeps its average in memory, which is no smaller than what was "
            "moved to the disk; remove training.ema, or use Cpu"
        )


def on_disk(engine: EngineSpec) -> list[str]:
    """Fields that ask for offload to a disk."""
    places = {
        "engine.offloadOptimizer": engine.offload_optimizer,
        "engine.offloadParameters": engine.offload_parameters,
    }
    return [field for field, place in places.items() if place == "Nvme"]


def bytes_on_disk(engine: EngineSpec, precision: Precision, trained: int, parameters: int) -> int:
    """At most, of all processes. `trained` of the `parameters` numbers are trained."""
    # float32: the weights that are updated, two moments, and gradients on their way
    optimizer = 16 * trained if engine.offload_optimizer == "Nvme" else 0
    weights = (4 if precision == "fp32" else 2) * parameters if engine.offload_parameters == "Nvme" else 0
    return optimizer + weights


def deepspeed_config(
    engine: EngineSpec, spec: ResolvedTraining, precision: Precision, device: str, parameters: int, largest: int
) -> dict[str, Any]:
    """DeepSpeed's JSON configuration. The optimizer and the learning rates are ours.

    Args:
        device: cpu or cuda.
        parameters: how many numbers the module has, frozen ones included.
        largest: how many its largest parameter has in one process.
    """
    stage = engine.zero_stage or 2
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": min(LARGEST_BUCKET, parameters),
        "allgather_bucket_size": even(min(LARGEST_BUCKET, parameters)),
    }
    if engine.offload_optimizer != "None":
        zero["offload_optimizer"] = _place(engine, engine.offload_optimizer, device)
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = min(LARGEST_WHOLE, parameters // 1000)
        live = min(LIVE_PARAMETERS, parameters // 10)
        zero["stage3_max_live_parameters"] = zero["stage3_max_reuse_distance"] = live
        zero["stage3_prefetch_bucket_size"] = live // 2
    if engine.offload_parameters != "None":
        zero["offload_param"] = _place(engine, engine.offload_parameters, device)
    if on_disk(engine):
        zero["sub_group_size"] = min(DISK_AT_A_TIME, parameters // 10)
    if engine.offload_parameters == "Nvme":
        # nothing stays in the host's memory, where DeepSpeed would keep the first thousand million
        zero["offload_param"] |= {"max_in_cpu": 0, "buffer_count": DISK_BUFFERS, "buffer_size": largest}
        # a parameter has a buffer for as long as it is whole, and DeepSpeed does not count them
        zero["stage3_max_reuse_distance"] = zero["stage3_prefetch_bucket_size"] = 0
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": spec.batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "gradient_clipping": spec.max_grad_norm,
        "zero_optimization": zero,
        # torch's fused AdamW, on the CPU too: DeepSpeed's own is C++ that is compiled when it is first used
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    if precision == "fp16":
        # as the other engines scale the loss, so that a checkpoint's scale means the same
        power = int(math.log2(FIRST))
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": power,
            "loss_scale_window": INTERVAL,
            "hysteresis": 1,
        }
    return config


def even(number: int) -> int:
    """DeepSpeed wants buckets of pairs."""
    return number + number % 2


def _place(engine: EngineSpec, place: str, device: str) -> dict[str, Any]:
    told: dict[str, Any] = {"device": place.lower(), "pin_memory": device == "cuda"}
    return told | {"nvme_path": engine.nvme_path} if place == "Nvme" else told
