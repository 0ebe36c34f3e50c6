"""spec.engine: how steps are executed, and on what."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import Model
from finetune_api.rules import NotYet, Rule

Quantity = Annotated[
    str,
    StringConstraints(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"),
]


class EngineSpec(Model):
    """Processes, nodes and offload."""

    rules: ClassVar[tuple[Rule, ...]] = (
        NotYet("offloadOptimizer", "use None", allowed=("None",)),
        NotYet("offloadParameters", "use None", allowed=("None",)),
    )

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods that train together."""
    processes_per_node: Annotated[int, Field(ge=1, le=16)] = 1
    """Processes in each pod, one for each GPU."""
    offload_optimizer: Literal["None", "Cpu"] = "None"
    """Keep the optimizer's state in the host's memory (for small GPUs)."""
    offload_parameters: Literal["None", "Cpu"] = "None"
    """Keep parameters in the host's memory until they are needed (for small GPUs)."""


class Resources(Model):
    """Requests and limits of the training container, as in a pod."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """What is reserved."""
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """What is not to be exceeded; nvidia.com/gpu stands here."""
