"""What DeepSpeed is told, and what is refused before it is asked."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from finetune_api.engine import EngineSpec
from finetune_trainer.engines.deepspeed_library import load_deepspeed
from finetune_trainer.engines.deepspeed_settings import bytes_on_disk, check_settings, deepspeed_config
from finetune_trainer.engines.precision import Precision
from finetune_trainer.errors import ConfigurationError
from support.training import make_run

SDXL = 3_385_000_000
"""Numbers of a Stable Diffusion XL's UNet and text encoders."""
TABLE = 63_000_000
"""Numbers of the largest parameter, the table of the second encoder's tokens."""


def engine(**fields: object) -> EngineSpec:
    return EngineSpec.model_validate({"kind": "DeepSpeed", **fields})


ALL_AWAY = {"zero_stage": 3, "offload_optimizer": "Cpu", "offload_parameters": "Cpu"}
ON_DISK = {"zero_stage": 3, "offload_optimizer": "Nvme", "offload_parameters": "Nvme", "nvme_path": "/fast"}
BUCKETS = {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
STAGE_3 = {
    "stage": 3,
    **BUCKETS,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 100_000_000,
    "stage3_max_reuse_distance": 100_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}
PINNED = {"device": "cpu", "pin_memory": True}
DISK = {"device": "nvme", "pin_memory": True, "nvme_path": "/fast"}
AT_A_TIME = {"sub_group_size": 30_000_000}
ALL_ON_DISK = {
    **STAGE_3,
    **AT_A_TIME,
    "offload_optimizer": DISK,
    "offload_param": {**DISK, "max_in_cpu": 0, "buffer_count": 5, "buffer_size": TABLE},
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}


@pytest.mark.parametrize(
    ("fields", "zero"),
    [
        ({}, {"stage": 2, **BUCKETS}),
        ({"zero_stage": 1}, {"stage": 1, **BUCKETS}),
        ({"offload_optimizer": "Cpu"}, {"stage": 2, **BUCKETS, "offload_optimizer": PINNED}),
        ({"zero_stage": 3}, STAGE_3),
        (ALL_AWAY, {**STAGE_3, "offload_optimizer": PINNED, "offload_param": PINNED}),
        (ON_DISK, ALL_ON_DISK),
        (
            ON_DISK | {"offload_parameters": "Cpu"},
            {**STAGE_3, **AT_A_TIME, "offload_optimizer": DISK, "offload_param": PINNED},
        ),
    ],
)
def test_zero(fields: dict[str, object], zero: dict[str, object]) -> None:
    spec = make_run().training
    assert deepspeed_config(engine(**fields), spec, "fp32", "cuda", SDXL, TABLE)["zero_optimization"] == zero


@pytest.mark.parametrize(
    ("fields", "precision", "needed"),
    [
        (ALL_AWAY, "fp32", 0),
        (ON_DISK, "fp32", 16 * 3 + 4 * 10),
        (ON_DISK, "bf16", 16 * 3 + 2 * 10),
        (ON_DISK | {"offload_parameters": "Cpu"}, "bf16", 16 * 3),
        (ON_DISK | {"offload_optimizer": "Cpu"}, "bf16", 2 * 10),
    ],
)
def test_what_a_disk_must_hold(fields: dict[str, object], precision: Precision, needed: int) -> None:
    """Of 10 numbers, 3 of which are trained."""
    assert bytes_on_disk(engine(**fields), precision, 3, 10) == needed


def test_a_small_model_is_cut_too() -> None:
    """The bounds are those of a model of a hundred thousand numbers, none of which would be left alone otherwise."""
    zero: Any = deepspeed_config(engine(**ALL_AWAY), make_run().training, "fp32", "cpu", 100_001, 3_000)[
        "zero_optimization"
    ]
    assert zero["stage3_param_persistence_threshold"] == 100
    assert (zero["stage3_max_live_parameters"], zero["stage3_max_reuse_distance"]) == (10_000, 10_000)
    assert zero["stage3_prefetch_bucket_size"] == 5_000
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (100_001, 100_002)
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": False}


def test_what_else_it_is_told() -> None:
    spec = make_run(training={"batchSize": 3, "gradientAccumulationSteps": 2, "maxGradNorm": 0.5}).training
    told = deepspeed_config(engine(), spec, "fp32", "cuda", SDXL, TABLE)
    del told["zero_optimization"]
    assert told == {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    assert deepspeed_config(engine(), spec, "bf16", "cuda", SDXL, TABLE)["bf16"] == {
        "enabled": True,
        "check_grad_overflow": True,
    }
    assert deepspeed_config(engine(), spec, "fp16", "cuda", SDXL, TABLE)["fp16"] == {
        "enabled": True,
        "loss_scale": 0,
        "initial_scale_power": 16,
        "loss_scale_window": 2000,
        "hysteresis": 1,
    }


def test_what_is_refused() -> None:
    spec, averaging = make_run().training, make_run(training={"ema": True}).training
    check_settings(engine(**ON_DISK), spec, "fp16", "cuda")
    check_settings(engine(**ALL_AWAY), averaging, "bf16", "cpu")
    with pytest.raises(ConfigurationError, match=r"precision is fp16, which DeepSpeed does not support on a CPU; use"):
        check_settings(engine(), spec, "fp16", "cpu")
    with pytest.raises(ConfigurationError, match=r"engine.offloadOptimizer is Nvme, and training.ema keeps its"):
        check_settings(engine(**ON_DISK), averaging, "bf16", "cuda")


def test_a_trainer_without_deepspeed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    for name in ("DS_ACCELERATOR", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    with pytest.raises(ConfigurationError, match=r"engine.kind is DeepSpeed, but .* install .*`deepspeed`, with DS_"):
        load_deepspeed(torch.device("cpu"))
