"""DeepSpeed, imported in the one way in which it compiles nothing and prints nothing."""

from __future__ import annotations

import fcntl
import logging
import os
import warnings
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType
from typing import IO

import torch
from finetune_api.engine import EngineSpec

from finetune_trainer.engines.deepspeed_settings import on_disk
from finetune_trainer.errors import ConfigurationError

REMEDY = "install the trainer's package `deepspeed`, with DS_BUILD_OPS=0 in the environment no compiler is needed"


def load_deepspeed(device: torch.device) -> ModuleType:
    """The package.

    Raises:
        ConfigurationError: it is not installed.
    """
    # it would look for any kind of accelerator, and say so
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # it wants to be told as its own launcher does
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigurationError(
            f"engine.kind is DeepSpeed, but this trainer cannot import it ({error}); {REMEDY}, or use another "
            "engine.kind"
        ) from error
    _compile_nothing()
    _log_as_we_do()
    return deepspeed


def check_disk(engine: EngineSpec) -> None:
    """Offload to a disk needs a folder to write to, and DeepSpeed's asynchronous I/O, which is C++.

    Raises:
        ConfigurationError: `engine` asks for it, and the folder cannot be written to, or DeepSpeed was installed
            without that.
    """
    fields = on_disk(engine)
    if not fields or engine.nvme_path is None:
        return
    try:
        Path(engine.nvme_path).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=engine.nvme_path):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"engine.nvmePath is {engine.nvme_path}, where this run cannot write ({error.strerror}); name another"
        ) from error
    from deepspeed.git_version_info import installed_ops

    if not installed_ops.get("async_io"):
        raise ConfigurationError(
            f"{fields[0]} is Nvme, but DeepSpeed was installed without its asynchronous I/O; install it with "
            "DS_BUILD_AIO=1 in the environment, where libaio and a C++ compiler are, or use Cpu"
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


def _compile_nothing() -> None:
    """On a CPU, DeepSpeed compiles its collectives through shared memory when it opens a group, and if that is killed
    in the middle, it leaves a lock for which the next process waits for ever. It does so only where its table of what
    it could compile has them; making that table runs the compiler as well. An empty one is what it finds first."""
    import deepspeed.ops

    deepspeed.ops.__dict__["__compatible_ops__"] = {}


def _log_as_we_do() -> None:
    """Its logger writes to the standard output, which has one JSON object a line."""
    logger = logging.getLogger("DeepSpeed")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    # torch says so in each step, of functions that DeepSpeed calls
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
