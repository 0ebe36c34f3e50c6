"""Which device a process works on."""

from __future__ import annotations

import os

import torch

from finetune_trainer.errors import ConfigurationError
from finetune_trainer.group.seat import Seat


def device_of(seat: Seat | None) -> torch.device:
    """The GPU of this process, with its number, or the CPU where there is none.

    Raises:
        ConfigurationError: there are fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if seat is None:
        # not all that torch asks of a device can be asked of one without a number
        return torch.device("cuda", torch.cuda.current_device())
    count = torch.cuda.device_count()
    if seat.local_rank >= count:
        raise ConfigurationError(
            f"spec.engine.processesPerNode is more than {seat.local_rank}, but there are {count} GPUs; use as many "
            "processes as the profile's resources.limits have GPUs"
        )
    torch.cuda.set_device(seat.local_rank)
    return torch.device("cuda", seat.local_rank)


def compute_deterministically() -> None:
    """From now on torch takes algorithms that compute the same each time, and refuses what has none. To be called
    before anything is put on a GPU: cuBLAS looks for its setting once, when it starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
