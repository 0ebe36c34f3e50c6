"""What a DeepSpeed configuration (https://www.deepspeed.ai/docs/config-json/) says of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_trainer.errors import ConfigurationError

PLACES = {"none": "None", "cpu": "Cpu", "nvme": "Nvme"}
AUTO = "auto"
"""Transformers' word for what the trainer decides."""
SETTLED = {
    "aio",
    "steps_per_print",
    "train_batch_size",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
}
"""How DeepSpeed does its work and what it prints; and a size that follows from others."""
ZERO = {"stage", "offload_optimizer", "offload_param"}
TUNING = (
    "allgather_",
    "contiguous_gradients",
    "elastic_checkpoint",
    "ignore_unused_parameters",
    "overlap_comm",
    "reduce_",
    "round_robin_gradients",
    "stage3_",
    "sub_group_size",
)
"""Beginnings of the names of what the engine sets itself, for models of this size."""
ADAM = {"lr": "learningRate", "weight_decay": "weightDecay", "eps": "epsilon", "betas": "betas"}
OWN_ADAM = {"adam_w_mode", "torch_adam", "amsgrad", "fused"}


@dataclass(frozen=True)
class DeepSpeedWishes:
    """Fields as they stand in a FineTuneJob."""

    engine: dict[str, object] = field(default_factory=dict)
    training: dict[str, object] = field(default_factory=dict)


def read_deepspeed(document: Mapping[str, object]) -> DeepSpeedWishes:
    """What `document`, read from its JSON, says. "auto" is left to the trainer.

    Raises:
        ConfigurationError: something in it has no counterpart here.
    """
    simple = {
        "train_micro_batch_size_per_gpu": "batchSize",
        "gradient_accumulation_steps": "gradientAccumulationSteps",
        "gradient_clipping": "maxGradNorm",
    }
    known = {*simple, *SETTLED, "zero_optimization", "fp16", "bf16", "bfloat16", "optimizer"}
    strange = sorted(name for name, value in document.items() if name not in known and not _says_nothing(value))
    if strange:
        raise ConfigurationError(f"DeepSpeed's {strange[0]} is not carried out; remove it{_scheduler(strange[0])}")
    training: dict[str, object] = {
        ours: document[theirs] for theirs, ours in simple.items() if not _says_nothing(document.get(theirs))
    }
    if training.get("maxGradNorm") == 0:
        raise ConfigurationError(
            "DeepSpeed's gradient_clipping is 0, which is no clipping; here gradients are always clipped: use a length "
            "that none has, such as 1000"
        )
    enabled = [name for name in ("fp16", "bf16", "bfloat16") if _fields(document, name).get("enabled") is True]
    if len(enabled) > 1:
        raise ConfigurationError(f"DeepSpeed's {enabled[0]} and {enabled[1]} are both enabled; choose one")
    if enabled:
        training["precision"] = "fp16" if enabled == ["fp16"] else "bf16"
    training |= _optimizer(_fields(document, "optimizer"))
    return DeepSpeedWishes(_zero(_fields(document, "zero_optimization")), training)


def _zero(zero: Mapping[str, object]) -> dict[str, object]:
    stage = zero.get("stage", 0)
    if stage == 0:
        return {"kind": "Replicated"}
    if stage not in (1, 2, 3):
        raise ConfigurationError(f"DeepSpeed's zero_optimization.stage is {stage!r}; use 0, 1, 2 or 3")
    strange = sorted(name for name in zero if name not in ZERO and not name.startswith(TUNING))
    if strange:
        raise ConfigurationError(f"DeepSpeed's zero_optimization.{strange[0]} is not carried out; remove it")
    engine: dict[str, object] = {"kind": "DeepSpeed", "zeroStage": stage}
    paths: list[object] = []
    for theirs, ours in (("offload_optimizer", "offloadOptimizer"), ("offload_param", "offloadParameters")):
        said = _fields(zero, theirs)
        device = str(said.get("device", "none"))
        if device not in PLACES:
            raise ConfigurationError(
                f"DeepSpeed's zero_optimization.{theirs}.device is {device}; use {', '.join(PLACES)}"
            )
        if device != "none":
            engine[ours] = PLACES[device]
        if device == "nvme":
            paths.append(said.get("nvme_path"))
    if len(set(paths)) > 1:
        raise ConfigurationError(
            "DeepSpeed's offload_optimizer and offload_param have different nvme_path; there is one engine.nvmePath: "
            "use the same"
        )
    return engine | ({"nvmePath": paths[0]} if paths and paths[0] is not None else {})


def _optimizer(section: Mapping[str, object]) -> dict[str, object]:
    kind = section.get("type")
    if kind is None:
        return {}
    parameters = _fields(section, "params")
    # plain Adam is AdamW unless it is told otherwise
    if kind not in ("Adam", "AdamW") or parameters.get("adam_w_mode") is False:
        said = f"{kind} with adam_w_mode false" if kind == "Adam" else kind
        raise ConfigurationError(f"DeepSpeed's optimizer.type is {said}, which is not carried out; use AdamW")
    strange = sorted(set(parameters) - set(ADAM) - OWN_ADAM)
    if strange:
        raise ConfigurationError(f"DeepSpeed's optimizer.params.{strange[0]} is not carried out; remove it")
    said = {ours: parameters[theirs] for theirs, ours in ADAM.items() if not _says_nothing(parameters.get(theirs))}
    rate = {"learningRate": said.pop("learningRate")} if "learningRate" in said else {}
    if "betas" in said:
        betas = said.pop("betas")
        if not isinstance(betas, list) or len(betas) != 2:
            raise ConfigurationError(f"DeepSpeed's optimizer.params.betas is {betas!r}; use two numbers")
        said |= {"beta1": betas[0], "beta2": betas[1]}
    return rate | {"optimizer": {"name": "AdamW", **said}}


def _fields(section: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = section.get(name) or {}
    if not isinstance(found, Mapping):
        raise ConfigurationError(f"DeepSpeed's {name} is {found!r}; it holds fields of its own")
    return found


def _says_nothing(value: object) -> bool:
    """Whether it is left to the trainer: nothing, or "auto" wherever it says something."""
    if isinstance(value, Mapping):
        # a kind of scheduler alone, with nothing set, is what every template has
        return all(_says_nothing(one) for name, one in value.items() if name != "type")
    return value is None or value is False or value == AUTO


def _scheduler(name: str) -> str:
    return ", and say it in training.scheduler" if name == "scheduler" else ""
