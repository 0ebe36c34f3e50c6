"""What a configuration of Hugging Face's accelerate, and a DeepSpeed JSON it may name, say of a run: spec.engine and
spec.training. What has no counterpart here is refused rather than passed over, but for what an operator, or the engine
itself, settles.

Keys: https://huggingface.co/docs/accelerate/package_reference/cli and https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from finetune_trainer.errors import ConfigurationError
from finetune_trainer.from_accelerate.deepspeed_json import DeepSpeedWishes, read_deepspeed

KINDS = {
    "NO": "Auto",
    "MULTI_GPU": "Replicated",
    "MULTI_CPU": "Replicated",
    "DEEPSPEED": "DeepSpeed",
    "FSDP": "Sharded",
}
"""distributed_type → engine.kind."""
PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
SETTLED = {
    "compute_environment",
    "debug",
    "downcast_bf16",
    "dynamo_config",
    "enable_cpu_affinity",
    "gpu_ids",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "main_training_function",
    "rdzv_backend",
    "same_network",
    "tpu_env",
    "tpu_use_cluster",
    "tpu_use_sudo",
    "use_cpu",
}
"""What says where processes run and how they find each other: the operator's business, and that of spec.resources."""
OWN_DEEPSPEED = {
    "deepspeed_config_file",
    "deepspeed_exclusion_filter",
    "deepspeed_hostfile",
    "deepspeed_inclusion_filter",
    "deepspeed_multinode_launcher",
    "zero3_init_flag",
    "zero3_save_16bit_model",
}
"""The same; and that weights are loaded whole and exported whole, as here they always are."""
OWN_FSDP = {
    "fsdp_auto_wrap_policy",
    "fsdp_backward_prefetch",
    "fsdp_backward_prefetch_policy",
    "fsdp_cpu_ram_efficient_loading",
    "fsdp_forward_prefetch",
    "fsdp_min_num_params",
    "fsdp_state_dict_type",
    "fsdp_sync_module_states",
    "fsdp_transformer_layer_cls_to_wrap",
    "fsdp_use_orig_params",
    "fsdp_version",
}
"""How the engine does its work, which it knows for the models it has."""
OFFLOADED = ("offload_optimizer", "offload_param")
WHOLE_SHARD = {"FULL_SHARD", "1", "None"}


@dataclass(frozen=True)
class Translation:
    """Fields as they stand in a FineTuneJob."""

    engine: dict[str, object] = field(default_factory=dict)
    training: dict[str, object] = field(default_factory=dict)


def translated(config: Mapping[str, object], deepspeed: Mapping[str, object] | None = None) -> Translation:
    """What `config` says.

    Args:
        config: an accelerate configuration, read from its YAML or JSON.
        deepspeed: the file that its deepspeed_config.deepspeed_config_file names, read.

    Raises:
        ConfigurationError: something in it has no counterpart here, or contradicts something else in it.
    """
    if "distributed_type" not in config:
        raise ConfigurationError(
            "the file has no distributed_type, so it is no configuration of accelerate; `accelerate config` writes one"
        )
    kind = KINDS.get(str(config["distributed_type"]))
    if kind is None:
        _refuse("distributed_type", config, f"use {', '.join(KINDS)}")
    place = str(config.get("compute_environment", "LOCAL_MACHINE"))
    if place != "LOCAL_MACHINE":
        _refuse("compute_environment", config, "let the operator run it, and use LOCAL_MACHINE")
    _check_known(config, SETTLED | {"distributed_type", "num_processes", "num_machines", "mixed_precision"})
    engine, training = _processes(config), _precision(config)
    if kind != "Auto":
        engine["kind"] = kind
    _compile(config, engine)
    if kind == "DeepSpeed":
        wishes = _deepspeed(_section(config, "deepspeed_config"), deepspeed)
        engine |= wishes.engine
        said, files = training.get("precision"), wishes.training.get("precision")
        if said is not None and files is not None and said != files:
            raise ConfigurationError(
                f"mixed_precision is {config['mixed_precision']}, but DeepSpeed's file enables {files}; make them say "
                "the same"
            )
        training |= wishes.training
    if kind == "Sharded":
        _fsdp(_section(config, "fsdp_config"), engine, training)
    return Translation(engine, training)


def _processes(config: Mapping[str, object]) -> dict[str, object]:
    processes, machines = _count(config, "num_processes"), _count(config, "num_machines")
    if processes % machines:
        raise ConfigurationError(
            f"num_processes is {processes}, which {machines} machines (num_machines) cannot share evenly; use a "
            "multiple"
        )
    counts = {"nodes": machines, "processesPerNode": processes // machines}
    return {name: count for name, count in counts.items() if count > 1}


def _precision(config: Mapping[str, object]) -> dict[str, object]:
    said = config.get("mixed_precision")
    if said is None:
        return {}
    # YAML reads an unquoted no as false
    precision = PRECISIONS.get("no" if said is False else str(said))
    if precision is None:
        _refuse("mixed_precision", config, f"use {', '.join(PRECISIONS)}")
    return {"precision": precision}


def _compile(config: Mapping[str, object], engine: dict[str, object]) -> None:
    """torch.compile is an engine of its own here."""
    dynamo = _section(config, "dynamo_config")
    backend = str(dynamo.get("dynamo_backend", "NO")).upper()
    if backend == "NO":
        return
    if backend != "INDUCTOR":
        raise ConfigurationError(f"dynamo_config.dynamo_backend is {backend}, which is not carried out; use INDUCTOR")
    if engine:
        raise ConfigurationError(
            "dynamo_config.dynamo_backend is INDUCTOR, which is not carried out with several processes or DeepSpeed; "
            "use NO"
        )
    engine["kind"] = "Compiled"


def _deepspeed(section: Mapping[str, object], file: Mapping[str, object] | None) -> DeepSpeedWishes:
    if "deepspeed_config_file" in section:
        if file is None:
            raise ConfigurationError(
                f"deepspeed_config.deepspeed_config_file is {section['deepspeed_config_file']}, which was not found; "
                "put it beside the configuration"
            )
        strange = sorted(set(section) - OWN_DEEPSPEED)
        if strange:
            raise ConfigurationError(
                f"deepspeed_config.{strange[0]} stands beside deepspeed_config_file, which says it too; remove one"
            )
        return read_deepspeed(file)
    zero: dict[str, object] = {"stage": section.get("zero_stage", 2)}
    document: dict[str, object] = {"zero_optimization": zero}
    for part in OFFLOADED:
        device = str(section.get(f"{part}_device", "none"))
        if device != "none":
            zero[part] = {"device": device, "nvme_path": section.get(f"{part}_nvme_path")}
    for name in ("gradient_clipping", "gradient_accumulation_steps"):
        if name in section:
            document[name] = section[name]
    known = {"zero_stage", "gradient_clipping", "gradient_accumulation_steps"}
    known |= {f"{part}_{what}" for part in OFFLOADED for what in ("device", "nvme_path")}
    _check_known(section, known | OWN_DEEPSPEED, "deepspeed_config.")
    return read_deepspeed(document)


def _fsdp(section: Mapping[str, object], engine: dict[str, object], training: dict[str, object]) -> None:
    _check_known(
        section,
        OWN_FSDP
        | {
            "fsdp_activation_checkpointing",
            "fsdp_offload_params",
            "fsdp_reshard_after_forward",
            "fsdp_sharding_strategy",
        },
        "fsdp_config.",
    )
    strategy = str(section.get("fsdp_sharding_strategy"))
    if strategy in ("NO_SHARD", "3"):
        engine["kind"] = "Replicated"
    elif strategy not in WHOLE_SHARD:
        _refuse("fsdp_sharding_strategy", section, "use FULL_SHARD, or DEEPSPEED with zero_stage 2", "fsdp_config.")
    # the older version has its strategies there
    reshard = str(section.get("fsdp_reshard_after_forward", True))
    if reshard.upper() not in ("TRUE", "FULL_SHARD"):
        _refuse("fsdp_reshard_after_forward", section, "use true, or DEEPSPEED with zero_stage 2", "fsdp_config.")
    if section.get("fsdp_offload_params"):
        if engine["kind"] == "Replicated":
            raise ConfigurationError(
                f"fsdp_config.fsdp_offload_params is true, and fsdp_sharding_strategy {strategy} leaves nothing to "
                "offload; use FULL_SHARD"
            )
        engine["offloadParameters"] = "Cpu"
    if section.get("fsdp_activation_checkpointing"):
        training["gradientCheckpointing"] = True


def _section(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = config.get(name) or {}
    if not isinstance(section, Mapping):
        raise ConfigurationError(f"{name} is {section!r}; it holds fields of its own")
    return section


def _count(config: Mapping[str, object], name: str) -> int:
    value = config.get(name, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name} is {value!r}; use a number of at least 1")
    return value


def _check_known(section: Mapping[str, object], known: set[str], prefix: str = "") -> None:
    sections = set() if prefix else {"deepspeed_config", "fsdp_config"}
    for name, value in section.items():
        # accelerate writes all sections, most of them empty
        if name not in known | sections and value not in (None, {}, [], False):
            _refuse(name, section, "remove it", prefix)


def _refuse(name: str, section: Mapping[str, object], remedy: str, prefix: str = "") -> NoReturn:
    raise ConfigurationError(f"{prefix}{name} is {section[name]!r}, which is not carried out; {remedy}")
