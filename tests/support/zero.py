"""DeepSpeed in the tests: what it holds, what it would compile, and trainings that have it as their engine."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from finetune_api import TrainingRun
from finetune_api.engine import EngineSpec
from finetune_trainer.group.seat import Seat

from support.groups import Trained, train_in_group
from support.partitioned import Case, Found, try_in_group
from support.stepping import Stepping

COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "ninja", "make")


def zero(stage: int, optimizer: str = "None", parameters: str = "None") -> EngineSpec:
    return EngineSpec(kind="DeepSpeed", zero_stage=stage, offload_optimizer=optimizer, offload_parameters=parameters)


@contextmanager
def processes_without_compiler(size: int, folder: Path) -> Iterator[tuple[ProcessPoolExecutor, Path]]:
    """Processes that find nothing on their PATH but compilers that fail; and the file in which these say so."""
    asked, programs = folder / "asked", folder / "programs"
    programs.mkdir(parents=True)
    for name in COMPILERS:
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {asked}\nexit 1\n')
        program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(programs))
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "extensions"))
        for name in ("CC", "CXX", "CUDA_HOME"):
            patch.delenv(name, raising=False)
        with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as pool:
            yield pool, asked


def zero_holds(one: Stepping) -> dict[str, int]:
    """What DeepSpeed has in this process between two steps. On a CPU all of it lies in the host's memory, and only its
    own word says which of it would on a GPU too."""
    engine: Any = one.engine
    optimizer, flats = engine._zero.optimizer, engine._partitions.flats()
    parameters = list(one.module.parameters())
    held = {
        "master": sum(flat.numel() for flat in flats),
        "moments": sum(optimizer.optimizer.state[flat]["exp_avg"].numel() for flat in flats),
        "live": sum(value.numel() for value in parameters),
    }
    if engine._zero.zero_optimization_stage() < 3:
        return held | {"optimizer offloaded": int(optimizer.cpu_offload)}
    return held | {
        "optimizer offloaded": int(optimizer.offload_optimizer),
        "parameters offloaded": int(optimizer.offload_param),
        "shares": sum(value.ds_tensor.numel() for value in parameters),
        "kept whole": sum(value.numel() for value in parameters if value.ds_persist),
    }


def try_zero(seat: Seat | None, case: Case, model: Path, pictures: Path) -> Found:
    forget_group()
    return try_in_group(seat, case, model, pictures)


def train_with_zero(
    seat: Seat | None, run: TrainingRun, model: Path, pictures: Path, folder: Path, stops_after: int | None = None
) -> Trained:
    forget_group()
    own = folder if seat is None or seat.leads else folder / str(seat.rank)
    return train_in_group(run, seat, model, pictures, own, stops_after)


def forget_group() -> None:
    """DeepSpeed remembers the group of a process for ever; here processes are in one group after another."""
    if "deepspeed" in sys.modules:
        import deepspeed.comm.comm as communication
        import deepspeed.utils.groups as groups

        communication.cdb = None
        importlib.reload(groups)
