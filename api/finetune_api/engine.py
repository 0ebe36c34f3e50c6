"""spec.engine: how steps are executed, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import Model
from finetune_api.choices import ChoiceNeeds, MoreThanOneNotWith, OnlyForChoice
from finetune_api.rules import Form, NotOfForm, OnlyWhen, Rule

Quantity = Annotated[
    str,
    StringConstraints(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"),
]


EngineKind = Literal["Auto", "Eager", "Captured", "Compiled", "Replicated", "Sharded", "DeepSpeed"]
ONE_PROCESS: tuple[EngineKind, ...] = ("Eager", "Captured", "Compiled")
"""Kinds that work in a single process."""
OPTIMIZERS: Mapping[EngineKind, tuple[str, ...]] = {
    "Captured": ("AdamW", "AdamW8bit"),
    "Compiled": ("AdamW", "AdamW8bit"),
    "Sharded": ("AdamW",),
    "DeepSpeed": ("AdamW",),
}
"""Kinds that cannot work with every training.optimizer.name, and with which they can. The other optimizers count on the
host in each step, which cannot be recorded, or look at more than a process's own piece of the weights."""
NVME_FORM = r"^(/[.]?[A-Za-z0-9_-][A-Za-z0-9._-]*)+$"
"""Without . and .., so that what is above what can be seen."""
TAKEN_FORM = (
    "^/(bin|boot|dev|etc|lib(32|64|x32)?|proc|run|sbin|sys|usr)(/|$)"
    "|^/(mnt|var|var/cache|var/lib)$|^/var/run(/|$)|^/(mnt|var/cache)/finetune(/|$)"
)
"""Where no empty volume may be mounted in a pod: what is there would be hidden. The cache is of other pods too. Below
/var/lib/finetune, the pod's scratch volume, a folder needs none."""
CHOICE = ("kind", "zero_stage", "offload_optimizer", "offload_parameters", "nvme_path")
"""Fields that belong together: whoever names a kind has chosen all of them."""
ZERO_STAGE = 2
"""Of DeepSpeed, where nobody names one."""


class EngineSpec(Model):
    """How steps are executed: the engine, its processes and nodes, and offload."""

    rules: ClassVar[tuple[Rule, ...]] = (
        MoreThanOneNotWith("nodes", "kind", ONE_PROCESS, "which works in one process; use Auto"),
        MoreThanOneNotWith("processesPerNode", "kind", ONE_PROCESS, "which works in one process; use Auto"),
        OnlyWhen("zeroStage", "kind", "DeepSpeed"),
        ChoiceNeeds(
            "offloadOptimizer",
            ("Cpu", "Nvme"),
            (("kind", "DeepSpeed"),),
            "since the other engines keep the optimizer's state beside the parameters",
        ),
        ChoiceNeeds(
            "offloadParameters",
            ("Cpu", "Nvme"),
            (("zeroStage", 3), ("kind", "Sharded")),
            "since the others keep all parameters where they compute",
        ),
        ChoiceNeeds("offloadOptimizer", ("Nvme",), (("zeroStage", 3),), "as DeepSpeed has it with that stage alone"),
        ChoiceNeeds("offloadParameters", ("Nvme",), (("zeroStage", 3),), "as DeepSpeed has it with that stage alone"),
        ChoiceNeeds("offloadOptimizer", ("Nvme",), (("nvmePath", None),), "a folder on the disk to use"),
        ChoiceNeeds("offloadParameters", ("Nvme",), (("nvmePath", None),), "a folder on the disk to use"),
        OnlyForChoice("nvmePath", ("offloadOptimizer", "offloadParameters"), "Nvme"),
        Form("nvmePath", NVME_FORM, "an absolute path of plain names, such as /scratch/offload"),
        NotOfForm("nvmePath", TAKEN_FORM, "a folder of the system or of the pod's other volumes; use /scratch/offload"),
    )

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods that train together."""
    processes_per_node: Annotated[int, Field(ge=1, le=16)] = 1
    """Processes in each pod, one for each GPU."""
    kind: EngineKind = "Auto"
    """Which engine executes the steps. Auto: the fastest one that fits, chosen when the training starts and told in the
    log. Eager: torch as it is. Captured: the whole step as one CUDA graph. Compiled: by torch.compile, for long
    trainings. Replicated: a copy in each process. Sharded: the parameters cut among the processes (FSDP2). DeepSpeed:
    ZeRO, with offload for small GPUs."""
    zero_stage: Annotated[int, Field(ge=1, le=3)] | None = None
    """What kind: DeepSpeed cuts among the processes. 1: the optimizer's state; 2: gradients too; 3: parameters too.
    Default: 2."""
    offload_optimizer: Literal["None", "Cpu", "Nvme"] = "None"
    """Keep the optimizer's state in the host's memory or on its disk (for small GPUs; kind: DeepSpeed)."""
    offload_parameters: Literal["None", "Cpu", "Nvme"] = "None"
    """Keep parameters in the host's memory or on its disk until they are needed (for small GPUs; zeroStage: 3 or
    kind: Sharded, which then keeps the optimizer's state there as well)."""
    nvme_path: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """Folder for offload to Nvme. In a pod it is a volume of its own on the node's disk, as large as the profile's
    scratchSizeLimit; or, below /var/lib/finetune, a part of the scratch volume."""


class Resources(Model):
    """Requests and limits of the training container, as in a pod."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """What is reserved."""
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """What is not to be exceeded; nvidia.com/gpu stands here."""
