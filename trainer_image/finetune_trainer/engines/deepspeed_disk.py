"""Offload to a disk: what DeepSpeed needs for it, found out before it begins, since it would end in a crash."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from shutil import disk_usage
from typing import IO, Any

import torch
from finetune_api.engine import EngineSpec
from torch import Tensor

from finetune_trainer.engines.deepspeed_settings import on_disk
from finetune_trainer.errors import ConfigurationError

BUILD = "DS_BUILD_AIO=1 LDFLAGS='-Wl,--no-as-needed -laio'"
"""DeepSpeed 0.19.8 by itself does not link its operator with libaio."""


def check_disk(engine: EngineSpec, device: str) -> None:
    """Offload to a disk needs a folder to write to past the page cache, and DeepSpeed's asynchronous I/O, in C++.

    Args:
        device: cpu or cuda.

    Raises:
        ConfigurationError: `engine` asks for it, and the folder cannot be written to like that, or DeepSpeed was
            installed without that, or for another device.
    """
    fields = on_disk(engine)
    if not fields or engine.nvme_path is None:
        return
    try:
        Path(engine.nvme_path).mkdir(parents=True, exist_ok=True)
        _write_directly(Path(engine.nvme_path) / f"try{os.getpid()}")
    except OSError as error:
        raise ConfigurationError(
            f"engine.nvmePath is {engine.nvme_path}, where this run cannot write as DeepSpeed does, with O_DIRECT "
            f"({error.strerror}); name another, on a disk"
        ) from error
    from deepspeed.git_version_info import accelerator_name, installed_ops

    if not installed_ops.get("async_io"):
        raise ConfigurationError(
            f"{fields[0]} is Nvme, but DeepSpeed was installed without its asynchronous I/O; install it "
            f"with {BUILD} DS_ACCELERATOR={device} in the environment, where libaio and a C++ compiler are, or use Cpu"
        )
    if accelerator_name != device:
        raise ConfigurationError(
            f"{fields[0]} is Nvme, but DeepSpeed's asynchronous I/O was compiled for {accelerator_name}, and this run "
            f"is on {device}; install it with {BUILD} DS_ACCELERATOR={device} in the environment, or use Cpu"
        )


def claim_disk(path: str, rank: int) -> IO[str]:
    """The folder for this process alone, until the file is closed or the process ends: DeepSpeed gives its files there
    the same names in every run.

    Raises:
        ConfigurationError: a process of another run has it.
    """
    file = (Path(path) / f"rank{rank}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigurationError(
            f"engine.nvmePath is {path}, which another run uses at the moment; name another"
        ) from error
    return file


def check_room(path: str, needed: int) -> None:
    """DeepSpeed does not look at what the disk answers, and would train with what it never wrote.

    Args:
        needed: bytes that the processes of this machine will have in the folder `path` together.

    Raises:
        ConfigurationError: the disk has no room for as many.
    """
    # what an attempt before left there is written over
    room = disk_usage(path).free + _held(path)
    if room < needed:
        raise ConfigurationError(
            f"engine.nvmePath is {path}, where {room / 1e9:.1f} GB are free, and this run needs {needed / 1e9:.1f} GB; "
            "name a larger disk, or use Cpu"
        )


@cache
def lend_memory(device: str) -> None:
    """What travels between disk and memory passes through buffers that are locked in memory. Where the limit of the
    process (RLIMIT_MEMLOCK, often 8 MiB in a container) forbids them, DeepSpeed would write to address 0.

    On a GPU its driver's pinned memory takes their place, to which that limit does not apply. On a CPU a
    ConfigurationError is raised where DeepSpeed asks for them.

    Raises:
        ConfigurationError: the asynchronous I/O is installed and cannot be loaded.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    try:
        handle = AsyncIOBuilder().load(verbose=False).aio_handle
    except ImportError as error:
        raise ConfigurationError(
            f"DeepSpeed's asynchronous I/O, which offload to Nvme needs, cannot be loaded ({error}); install libaio, "
            f"and DeepSpeed with {BUILD} in the environment, or use Cpu"
        ) from error
    handle.new_cpu_locked_tensor = or_refused(handle.new_cpu_locked_tensor, device)


def or_refused(locked: Callable[[Any, int, Tensor], Tensor], device: str) -> Callable[[Any, int, Tensor], Tensor]:
    """`locked`, which gives a tensor at address 0 where memory may not be locked, with another end of that."""

    def buffer(handle: object, count: int, example: Tensor) -> Tensor:
        own = locked(handle, count, example)
        if own.data_ptr():
            return own
        if device == "cuda":
            return torch.empty(count, dtype=example.dtype, pin_memory=True)
        size, limit = count * example.element_size(), resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        raise ConfigurationError(
            f"offload to Nvme needs a buffer of {size / 2**20:.0f} MiB that is locked in memory, and this process may "
            f"lock {limit / 2**20:.0f} MiB; raise that limit (ulimit -l; LimitMEMLOCK of the container runtime), or "
            "use Cpu for engine.offloadOptimizer and engine.offloadParameters"
        )

    return buffer


def mend_gradients(swapper: Any) -> None:  # noqa: ANN401  # DeepSpeed has no types
    """Gradients on a disk are read to where they belong in their partition, and what is read past the page cache has
    to begin at a multiple of 512 bytes in memory: 0.19.8 reads others too, which fails without a word, and trains with
    what was there before. Here what does not begin and end at such a place stays in memory, and a parameter that never
    had a gradient has one of zeros.
    """
    read = swapper._swap_in_gradients

    def cut(tensors: Sequence[Tensor], offsets: Sequence[int]) -> tuple[list[Tensor], list[int]]:
        pieces = [
            (tensor[start:end], offset + start)
            for tensor, offset in zip(tensors, offsets, strict=True)
            for start, end in aligned_pieces(offset, tensor.numel(), swapper.numel_alignment)
        ]
        return [piece for piece, _ in pieces], [offset for _, offset in pieces]

    def read_cleanly(aio_handle: object, parameter: Tensor, dest_buffer: Tensor) -> None:
        dest_buffer.zero_()
        read(aio_handle=aio_handle, parameter=parameter, dest_buffer=dest_buffer)

    swapper._adjust_for_misaligned_lengths = cut
    swapper._swap_in_gradients = read_cleanly


def aligned_pieces(offset: int, count: int, alignment: int) -> list[tuple[int, int]]:
    """Begins and ends of the parts of `count` numbers at `offset`: up to a multiple of `alignment`, from there as many
    as are a multiple of it, and what is left; none of them empty."""
    first = min(-offset % alignment, count)
    last = first + (count - first) // alignment * alignment
    return [(start, end) for start, end in pairwise((0, first, last, count)) if start < end]


def _held(path: str) -> int:
    """Bytes that the files in the folder have on the disk. Other processes may be removing theirs."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_blocks * 512
    return total


def _write_directly(file: Path) -> None:
    """Raises OSError, of a file system in memory too: DeepSpeed opens its files like that."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    finally:
        file.unlink(missing_ok=True)
