"""Configurations of accelerate, as `accelerate config` writes them and as its examples have them, become spec.engine
and spec.training; what has no counterpart is refused, by the name it has there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api import ExitCode
from finetune_trainer.cli import app
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.from_accelerate.configuration import Translation, translated
from finetune_trainer.from_accelerate.files import spec_of
from typer.testing import CliRunner

WRITTEN = """
compute_environment: LOCAL_MACHINE
debug: false
deepspeed_config:
  gradient_accumulation_steps: 4
  gradient_clipping: 1.0
  offload_optimizer_device: cpu
  offload_param_device: cpu
  zero3_init_flag: true
  zero3_save_16bit_model: true
  zero_stage: 3
distributed_type: DEEPSPEED
downcast_bf16: 'no'
dynamo_config: {}
enable_cpu_affinity: false
fsdp_config: {}
machine_rank: 0
main_training_function: main
megatron_lm_config: {}
mixed_precision: bf16
num_machines: 2
num_processes: 8
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""
FILE = {"deepspeed_config_file": "ds.json", "zero3_init_flag": False}
FSDP = {
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_offload_params": True,
    "fsdp_activation_checkpointing": True,
    "fsdp_version": 2,
    "fsdp_reshard_after_forward": True,
    "fsdp_state_dict_type": "FULL_STATE_DICT",
}


def of(kind: str, **more: object) -> dict[str, object]:
    return {"distributed_type": kind, **more}


def zero(**section: object) -> dict[str, object]:
    return of("DEEPSPEED", deepspeed_config=section)


def stage(number: int, **more: object) -> dict[str, object]:
    return {"zero_optimization": {"stage": number, **more}}


def test_what_accelerate_config_writes() -> None:
    assert translated(yaml.safe_load(WRITTEN)) == Translation(
        engine={
            "kind": "DeepSpeed",
            "zeroStage": 3,
            "offloadOptimizer": "Cpu",
            "offloadParameters": "Cpu",
            "nodes": 2,
            "processesPerNode": 4,
        },
        training={"precision": "bf16", "gradientAccumulationSteps": 4, "maxGradNorm": 1.0},
    )


@pytest.mark.parametrize(
    ("config", "engine", "training"),
    [
        (of("NO"), {}, {}),
        (of("NO", mixed_precision=False), {}, {"precision": "fp32"}),
        (of("NO", mixed_precision="no"), {}, {"precision": "fp32"}),
        (of("NO", mixed_precision="fp16"), {}, {"precision": "fp16"}),
        (of("NO", dynamo_config={"dynamo_backend": "INDUCTOR"}), {"kind": "Compiled"}, {}),
        (of("NO", dynamo_config={"dynamo_backend": "no"}), {}, {}),
        (of("MULTI_GPU", num_processes=2, gpu_ids="all"), {"kind": "Replicated", "processesPerNode": 2}, {}),
        (of("MULTI_CPU", num_processes=3, num_machines=3), {"kind": "Replicated", "nodes": 3}, {}),
        (zero(), {"kind": "DeepSpeed", "zeroStage": 2}, {}),
        (zero(zero_stage=0), {"kind": "Replicated"}, {}),
        (zero(zero_stage=1, gradient_clipping="auto"), {"kind": "DeepSpeed", "zeroStage": 1}, {}),
        (
            zero(zero_stage=3, offload_optimizer_device="nvme", offload_optimizer_nvme_path="/fast"),
            {"kind": "DeepSpeed", "zeroStage": 3, "offloadOptimizer": "Nvme", "nvmePath": "/fast"},
            {},
        ),
        (
            of("FSDP", fsdp_config=FSDP, num_processes=2),
            {"kind": "Sharded", "processesPerNode": 2, "offloadParameters": "Cpu"},
            {"gradientCheckpointing": True},
        ),
        (of("FSDP", fsdp_config={"fsdp_sharding_strategy": "FULL_SHARD"}), {"kind": "Sharded"}, {}),
        (of("FSDP", fsdp_config={"fsdp_sharding_strategy": 1, "fsdp_version": 1}), {"kind": "Sharded"}, {}),
        (of("FSDP", fsdp_config={"fsdp_sharding_strategy": "NO_SHARD"}), {"kind": "Replicated"}, {}),
    ],
)
def test_what_each_kind_becomes(
    config: dict[str, object], engine: dict[str, object], training: dict[str, object]
) -> None:
    assert translated(config) == Translation(engine, training)


@pytest.mark.parametrize(
    ("document", "engine", "training"),
    [
        (stage(2), {"kind": "DeepSpeed", "zeroStage": 2}, {}),
        ({}, {"kind": "Replicated"}, {}),
        (
            stage(3, offload_param={"device": "nvme", "nvme_path": "/fast", "pin_memory": True}, overlap_comm=True)
            | {"bf16": {"enabled": True}, "steps_per_print": 10, "train_micro_batch_size_per_gpu": 2},
            {"kind": "DeepSpeed", "zeroStage": 3, "offloadParameters": "Nvme", "nvmePath": "/fast"},
            {"precision": "bf16", "batchSize": 2},
        ),
        (
            stage(2, reduce_bucket_size="auto", allgather_partitions=True)
            | {"fp16": {"enabled": True, "initial_scale_power": 16}, "train_batch_size": "auto"}
            | {"optimizer": {"type": "AdamW", "params": {"lr": 5e-6, "betas": [0.9, 0.99], "weight_decay": "auto"}}},
            {"kind": "DeepSpeed", "zeroStage": 2},
            {"precision": "fp16", "learningRate": 5e-6, "optimizer": {"name": "AdamW", "beta1": 0.9, "beta2": 0.99}},
        ),
        (
            stage(2)
            | {"optimizer": {"type": "Adam", "params": {"eps": 1e-6}}, "gradient_clipping": "auto"}
            | {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}, "fp16": {"enabled": "auto"}},
            {"kind": "DeepSpeed", "zeroStage": 2},
            {"optimizer": {"name": "AdamW", "epsilon": 1e-6}},
        ),
    ],
)
def test_what_a_deepspeed_file_says(
    document: dict[str, Any], engine: dict[str, object], training: dict[str, object]
) -> None:
    assert translated(of("DEEPSPEED", deepspeed_config=FILE), document) == Translation(engine, training)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({}, "no distributed_type"),
        (of("MEGATRON_LM"), "distributed_type is 'MEGATRON_LM', which is not carried out; use NO, MULTI_GPU"),
        (of("XLA"), "distributed_type is 'XLA'"),
        (of("NO", compute_environment="AMAZON_SAGEMAKER"), "compute_environment is 'AMAZON_SAGEMAKER'"),
        (of("NO", mixed_precision="fp8"), "mixed_precision is 'fp8', which is not carried out; use no, fp16, bf16"),
        (of("MULTI_GPU", num_processes=3, num_machines=2), "num_processes is 3, which 2 machines"),
        (of("MULTI_GPU", num_processes="two"), "num_processes is 'two'; use a number"),
        (of("NO", num_machines=True), "num_machines is True; use a number"),
        (of("NO", parallelism_config={"tp_size": 2}), "parallelism_config is {'tp_size': 2}, which is not carried out"),
        (of("NO", what=1), "what is 1, which is not carried out; remove it"),
        (of("NO", dynamo_config={"dynamo_backend": "EAGER"}), "dynamo_config.dynamo_backend is EAGER"),
        (
            of("MULTI_GPU", num_processes=2, dynamo_config={"dynamo_backend": "INDUCTOR"}),
            "is INDUCTOR, which is not carried out with several processes",
        ),
        (of("FSDP", fsdp_config={"fsdp_sharding_strategy": "SHARD_GRAD_OP"}), "fsdp_config.fsdp_sharding_strategy is"),
        (of("FSDP", fsdp_config={"fsdp_reshard_after_forward": False}), "use true, or DEEPSPEED with zero_stage 2"),
        (of("FSDP", fsdp_config={"fsdp_what": 1}), "fsdp_config.fsdp_what is 1"),
        (
            of("FSDP", fsdp_config={"fsdp_sharding_strategy": "NO_SHARD", "fsdp_offload_params": True}),
            "leaves nothing to offload",
        ),
        (of("FSDP", fsdp_config="yes"), "fsdp_config is 'yes'; it holds fields of its own"),
        (zero(zero_stage=4), "stage is 4; use 0, 1, 2 or 3"),
        (zero(offload_param_device="disk"), "offload_param.device is disk; use none, cpu, nvme"),
        (zero(deepspeed_moe_layer_cls_names="A"), "deepspeed_config.deepspeed_moe_layer_cls_names is 'A'"),
        (zero(gradient_clipping=0.0), "gradient_clipping is 0, which is no clipping"),
        (
            zero(
                zero_stage=3,
                offload_optimizer_device="nvme",
                offload_optimizer_nvme_path="/a",
                offload_param_device="nvme",
                offload_param_nvme_path="/b",
            ),
            "different nvme_path",
        ),
        (of("DEEPSPEED", deepspeed_config=FILE), "deepspeed_config_file is ds.json, which was not found"),
    ],
)
def test_what_is_refused(config: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        translated(config)
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("config", "document", "complaint"),
    [
        (FILE | {"zero_stage": 2}, stage(2), "deepspeed_config.zero_stage stands beside deepspeed_config_file"),
        (FILE, stage(2, offload_optimizer="cpu"), "offload_optimizer is 'cpu'; it holds fields of its own"),
        (FILE, stage(2, zenflow={"topk_ratio": 0.1}), "zero_optimization.zenflow is not carried out; remove it"),
        (FILE, stage(2) | {"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16 and bf16 are both enabled"),
        (FILE, stage(2) | {"bf16": {"enabled": True}}, "mixed_precision is fp16, but DeepSpeed's file enables bf16"),
        (FILE, stage(2) | {"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel is not carried out; remove it"),
        (
            FILE,
            stage(2) | {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}},
            "scheduler is not carried out; remove it, and say it in training.scheduler",
        ),
        (FILE, stage(2) | {"optimizer": {"type": "OneBitAdam"}}, "optimizer.type is OneBitAdam"),
        (
            FILE,
            stage(2) | {"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}},
            "optimizer.type is Adam with adam_w_mode false",
        ),
        (FILE, stage(2) | {"optimizer": {"type": "AdamW", "params": {"beta": 1}}}, "optimizer.params.beta is not"),
        (FILE, stage(2) | {"optimizer": {"type": "AdamW", "params": {"betas": 0.9}}}, "betas is 0.9; use two numbers"),
    ],
)
def test_what_is_refused_of_a_deepspeed_file(
    config: dict[str, object], document: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        translated(of("DEEPSPEED", deepspeed_config=config, mixed_precision="fp16"), document)
    assert complaint in str(refused.value)


def test_the_command_prints_what_stands_in_a_job(tmp_path: Path) -> None:
    """A DeepSpeed file lies beside the configuration. 1e-6 is a number in JSON, and none in YAML 1.1."""
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(of("DEEPSPEED", deepspeed_config=FILE)))
    optimizer = {"type": "AdamW", "params": {"lr": 1e-6}}
    (tmp_path / "ds.json").write_text(json.dumps(stage(3) | {"optimizer": optimizer}))
    result = CliRunner().invoke(app, ["from-accelerate", str(tmp_path / "accelerate.yaml")])
    assert result.exit_code == 0
    spec = yaml.safe_load(result.stdout)
    assert spec["engine"] == {"kind": "DeepSpeed", "zeroStage": 3}
    assert float(spec["training"]["learningRate"]) == 1e-6


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("distributed_type: TPU", "distributed_type is 'TPU'"),
        ("- a", "has no fields"),
        ("a: [", "cannot be read"),
        (yaml.safe_dump(zero(offload_param_device="cpu")), "offloadParameters: Cpu or Nvme needs zeroStage: 3"),
        (yaml.safe_dump(zero(zero_stage=3, offload_param_device="nvme")), "Nvme needs nvmePath"),
        (yaml.safe_dump(zero(gradient_accumulation_steps=0)), "gradientAccumulationSteps is 0: must be at least 1"),
    ],
)
def test_the_command_says_what_is_wrong(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "accelerate.yaml").write_text(text)
    result = CliRunner().invoke(app, ["from-accelerate", str(tmp_path / "accelerate.yaml")])
    assert result.exit_code == ExitCode.BAD_CONFIGURATION
    assert complaint in result.stderr
    assert CliRunner().invoke(app, ["from-accelerate", str(tmp_path / "none")]).exit_code == ExitCode.BAD_CONFIGURATION


def test_a_file_that_is_missing_is_named_once(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with pytest.raises(ConfigurationError) as raised:
        spec_of(file)
    assert str(raised.value) == f"{file}: cannot be read: No such file or directory"
