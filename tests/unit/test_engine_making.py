"""A kind becomes an engine in one place, and the API server knows of the same ones."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from finetune_api.engine import ONE_PROCESS, EngineKind, EngineSpec
from finetune_trainer.engines import make_engine
from finetune_trainer.engines.cutting import CuttingEngine
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.making import KINDS
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.group.team import Alone
from finetune_trainer.planning import gathering
from finetune_trainer.planning.gathering import available_kinds, memory_of
from support.training import make_run

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Two(Alone):
    size = 2


def of(kind: EngineKind, **options: object) -> EngineSpec:
    """Not checked: admission refuses some of these already, and a document written by hand may come another way."""
    return EngineSpec().model_copy(update={"kind": kind, **options})


def test_what_is_admitted_is_there() -> None:
    assert set(get_args(EngineKind)) == {"Auto", *KINDS}


def test_auto_without_a_plan_is_the_plainest() -> None:
    assert type(make_engine(EngineSpec(), CPU)) is EagerEngine
    assert type(make_engine(of("Replicated"), CPU)) is EagerEngine, "the only copy"


def test_pieces() -> None:
    assert type(make_engine(EngineSpec(), CPU, cuts=2)) is CuttingEngine


@pytest.mark.parametrize("kind", ONE_PROCESS)
def test_what_works_in_one_process_is_refused_in_a_group(kind: EngineKind) -> None:
    with pytest.raises(ConfigurationError, match=rf"spec\.engine\.kind is {kind}, which works in one"):
        make_engine(of(kind), CPU, Two())


@pytest.mark.parametrize("field", ["offload_optimizer", "offload_parameters"])
def test_an_engine_without_offload_does_not_pass_over_it(field: str) -> None:
    with pytest.raises(ConfigurationError, match="Eager, which keeps everything on its device; use DeepSpeed or Sh"):
        make_engine(of("Eager", **{field: "Cpu"}), CPU)


@pytest.mark.parametrize(
    ("device", "optimizer", "installed", "missing"),
    [
        (GPU, "AdamW", True, set()),
        (GPU, "AdamW", False, {"DeepSpeed"}),
        (CPU, "AdamW", True, {"DeepSpeed"}),
        (GPU, "AdamW8bit", True, {"DeepSpeed", "Sharded"}),
        (CPU, "Prodigy", False, {"DeepSpeed", "Sharded"}),
    ],
)
def test_what_auto_may_choose_from(
    device: torch.device, optimizer: str, installed: bool, missing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "finetune_trainer.planning.gathering.find_spec", lambda name: name if installed or name == "triton" else None
    )
    spec = make_run(training={"optimizer": {"name": optimizer}, "learningRate": 1}).training
    monkeypatch.setenv("CC", "cc")
    assert available_kinds(device, spec) == KINDS.keys() - missing


@pytest.mark.parametrize(
    ("triton", "variable", "found", "compiles"),
    [
        (True, "", "gcc", True),
        (True, "", "clang", True),
        (True, "/opt/cc", "", True),
        (True, "", "", False),
        (False, "/opt/cc", "gcc", False),
    ],
)
def test_without_a_compiler_for_triton_auto_does_not_compile(
    triton: bool, variable: str, found: str, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "find_spec", lambda name: name if triton or name != "triton" else None)
    monkeypatch.setattr(gathering.shutil, "which", lambda name: f"/usr/bin/{name}" if name == found else None)
    monkeypatch.setenv("CC", variable)
    spec = make_run(training={"steps": 1}).training
    assert ("Compiled" in available_kinds(GPU, spec)) == compiles
    assert "Compiled" in available_kinds(CPU, spec), "nobody asks for Triton there"


def test_a_cpus_memory_is_not_planned() -> None:
    assert memory_of(CPU) is None


@pytest.mark.parametrize(("fraction", "expected"), [(1.0, 70), (0.5, 50)])
@pytest.mark.parametrize("device", [torch.device("cuda"), torch.device("cuda", 1)])
def test_the_memory_of_a_gpu_is_what_is_free_and_what_is_ours(
    device: torch.device, fraction: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    # by number: torch refuses a device without one in some of these
    monkeypatch.setattr(torch.cuda, "mem_get_info", {1: (60, 100)}.__getitem__)
    monkeypatch.setattr(torch.cuda, "memory_reserved", {1: 10}.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", {1: fraction}.__getitem__)
    assert memory_of(device) == expected
