"""What there is to know before an engine is chosen: the device, what is installed, and what the training will take."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Literal

import torch
from finetune_api.engine import EngineKind, EngineSpec
from finetune_api.training_run import ResolvedTraining
from torch import nn

from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.captured import not_capturable
from finetune_trainer.engines.making import KINDS
from finetune_trainer.methods.base import ParameterGroup
from finetune_trainer.planning.describing import describe
from finetune_trainer.planning.plans import Facts


def gather_facts(
    asked: EngineSpec,
    module: nn.Module,
    resident: Iterable[nn.Module],
    groups: Sequence[ParameterGroup],
    spec: ResolvedTraining,
    example: Sequence[Batch],
    steps: int,
    shapes: Sequence[tuple[int, int]],
    device: torch.device,
    processes: int,
) -> Facts:
    """Facts for plans.choose. On a GPU two forward passes are made, of one sample and of two.

    Args:
        module: what is to be trained, not yet given to an engine.
        resident: what else is on `device`.
        example: a step's micro-batches.
        steps: of the whole training.
        shapes: height and width in latents that micro-batches can have, each once.
        processes: that train together.
    """
    places = max(height * width for height, width in shapes)
    largest = max(example, key=lambda batch: batch.noise[0].numel()).noise
    memory = memory_of(device)
    described = None
    if memory is not None:
        area = places / largest[0, 0].numel()
        # where even that does not fit, planning takes the leanest
        with suppress(torch.OutOfMemoryError):
            described = describe(module, resident, groups, spec, example, device, area)
    return Facts(
        asked=asked,
        available=available_kinds(device, spec),
        device=_type_of(device),
        checkpointing=spec.gradient_checkpointing,
        steps=steps,
        processes=processes,
        samples=max(len(batch.timesteps) for batch in example),
        shapes=len(shapes),
        latents=places,
        numbers=sum(value.numel() for value in module.parameters()),
        capturable=_capturable(spec, module, twice=False),
        capturable_twice=_capturable(spec, module, twice=True),
        memory=memory,
        described=described,
    )


def available_kinds(device: torch.device, spec: ResolvedTraining) -> frozenset[EngineKind]:
    """What Auto may choose from: engines that there are and that take these settings."""
    # pieces of the weights are updated alone, and other optimizers look at more
    left_out: set[EngineKind] = {"Sharded", "DeepSpeed"} if spec.optimizer.name != "AdamW" else set()
    if device.type != "cuda" or find_spec("deepspeed") is None:
        left_out.add("DeepSpeed")
    if device.type == "cuda" and not _can_compile():
        left_out.add("Compiled")
    return frozenset(KINDS.keys() - left_out)


def _can_compile() -> bool:
    """For a GPU torch.compile writes Triton, which builds what starts its kernels with a C compiler, at run time."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return find_spec("triton") is not None and compiler is not None


def memory_of(device: torch.device) -> int | None:
    """Bytes of a GPU that this process has or could have; None for a CPU, whose memory is not planned."""
    if device.type != "cuda":
        return None
    # not all of these take a device without a number
    number = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(number)
    ours = torch.cuda.memory_reserved(number)
    # a limit that was set for this process holds for all of its memory
    return min(free + ours, int(total * torch.cuda.get_per_process_memory_fraction(number)))


def _capturable(spec: ResolvedTraining, module: nn.Module, twice: bool) -> bool:
    return not_capturable(spec.model_copy(update={"gradient_checkpointing": twice}), module) is None


def _type_of(device: torch.device) -> Literal["cpu", "cuda"]:
    return "cuda" if device.type == "cuda" else "cpu"
