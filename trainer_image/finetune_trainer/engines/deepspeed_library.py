"""DeepSpeed, imported in the one way in which it compiles nothing and prints nothing."""

from __future__ import annotations

import logging
import os
import warnings
from types import ModuleType

import torch

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
