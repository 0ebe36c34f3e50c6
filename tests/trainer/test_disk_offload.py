"""ZeRO-3 with weights and optimizer state on a disk: what copies in each process do, and little of it in memory.

DeepSpeed's asynchronous I/O is C++ that no wheel of a package index brings; where it is, these tests run."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from finetune_api.engine import EngineSpec
from support.groups import Trained, in_group
from support.method_cases import run_of
from support.partitioned import Case, Found, check_changes, check_changes_nothing, check_training
from support.stepping import Stepping
from support.tiny_sd import build_tiny_sd
from support.training import PROMPT, make_run
from support.zero import processes_without_compiler, train_with_zero, try_zero, zero_holds


def missing() -> str:
    """What keeps this machine from it."""
    if find_spec("deepspeed") is None:
        return "DeepSpeed is not installed"
    from deepspeed.git_version_info import accelerator_name, installed_ops

    if not installed_ops.get("async_io") or accelerator_name != "cpu":
        return "DeepSpeed was installed without DS_BUILD_AIO=1 DS_ACCELERATOR=cpu"
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if os.geteuid() != 0 and 0 <= limit < 2**30:
        return f"only {limit} bytes of memory may be locked"
    return ""


MISSING = missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

CHANNELS = (128, 256)
"""What has less than 1 MiB in a process stays in memory."""
TRAINING: dict[str, object] = {"gradientAccumulationSteps": 2, "learningRate": 1e-4, "batchSize": 1}
DREAMBOOTH: dict[str, object] = {"prompt": PROMPT, "trainTextEncoder": True}


def on_disk(folder: Path, optimizer: str = "Nvme", parameters: str = "Nvme") -> EngineSpec:
    return EngineSpec(
        kind="DeepSpeed",
        zero_stage=3,
        offload_optimizer=optimizer,
        offload_parameters=parameters,
        nvme_path=str(folder),
    )


def holds(one: Stepping) -> dict[str, int]:
    """And how many bytes are in the folder of this engine, of all processes."""
    folder = Path(one.engine._engine.nvme_path)
    return zero_holds(one) | {"bytes": sum(file.stat().st_size for file in folder.rglob("*.swp"))}


def cases(folder: Path) -> list[Case]:
    whole = make_run("dreamBooth", method={"dreamBooth": DREAMBOOTH}, training=TRAINING)
    half = make_run("dreamBooth", method={"dreamBooth": DREAMBOOTH}, training=TRAINING | {"precision": "bf16"})
    frozen = run_of("lora", batch=1, training={"learningRate": 1e-4})
    return [
        Case("fp32", whole, on_disk(folder / "fp32"), holds, changes=True),
        Case("bf16", half, on_disk(folder / "bf16"), holds),
        Case("frozen", frozen, on_disk(folder / "frozen"), holds, after=1),
        Case("optimizer alone", whole, on_disk(folder / "optimizer", parameters="Cpu"), holds, after=1),
        Case("parameters alone", whole, on_disk(folder / "parameters", optimizer="Cpu"), holds, after=1),
    ]


SIZES = {"optimizer alone": (1,), "parameters alone": (1,)}
EXACT = ("fp32", "frozen", "optimizer alone", "parameters alone")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sd(tmp_path_factory.mktemp("wide"), channels=CHANNELS)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProcessPoolExecutor, Path]]:
    with processes_without_compiler(2, tmp_path_factory.mktemp("zero")) as pool_and_file:
        yield pool_and_file


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProcessPoolExecutor, Path]]:
    """DeepSpeed does not take a process into groups of different sizes."""
    with processes_without_compiler(1, tmp_path_factory.mktemp("alone")) as pool_and_file:
        yield pool_and_file


@pytest.fixture(scope="module")
def found(
    model: Path,
    pictures: Path,
    alone: tuple[ProcessPoolExecutor, Path],
    processes: tuple[ProcessPoolExecutor, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, int], list[Found]]:
    """What each of so many processes finds of a case; looked for once."""

    def look(name: str, size: int) -> list[Found]:
        (case,) = (one for one in cases(tmp_path_factory.mktemp("disk")) if one.name == name)
        pool, _ = alone if size == 1 else processes
        return in_group(pool, size, try_zero, case, model, pictures)

    return cache(look)


@pytest.mark.parametrize(("case", "size"), [(name, size) for name in EXACT for size in SIZES.get(name, (1, 2))])
def test_it_is_the_same_training(case: str, size: int, found: Callable[[str, int], list[Found]]) -> None:
    each = found(case, size)
    check_training(each, averages=False)
    check_changes_nothing(each)
    assert all(one.resumed for one in each)


def test_engines_go_on_from_each_others_checkpoints(found: Callable[[str, int], list[Found]]) -> None:
    check_changes(found("fp32", 2))


@pytest.mark.parametrize("size", [1, 2])
def test_half_precision(size: int, found: Callable[[str, int], list[Found]]) -> None:
    """Of weights in bfloat16 beside float32 masters that begin as the model's own weights do."""
    for one in found("bf16", size):
        np.testing.assert_allclose(one.losses, one.expected_losses, rtol=2e-2)
        assert one.losses != one.expected_losses
        assert (one.resumed, one.unchanged, one.settled) == (True, True, True)
        assert one.update <= 0.2


@pytest.mark.parametrize("size", [1, 2])
def test_memory_has_little_of_it(size: int, found: Callable[[str, int], list[Found]]) -> None:
    """The optimizer's state and the weights are in the folder; what is too small for it stays, and of the state what
    was looked at last."""
    for one in found("fp32", size):
        held, share = one.held, one.held["whole"] / size
        assert held["master"] == held["moments"] < 0.2 * share
        assert held["shares"] < 0.5 * share
        assert held["bytes"] > 0.99 * 12 * held["whole"], "weights and moments, float32"


def test_no_compiler_is_asked(
    found: Callable[[str, int], list[Found]], processes: tuple[ProcessPoolExecutor, Path]
) -> None:
    found("fp32", 2)
    _, asked = processes
    assert not asked.exists(), asked.read_text()


def test_a_whole_training_is_stopped_and_goes_on(
    processes: tuple[ProcessPoolExecutor, Path], model: Path, pictures: Path, tmp_path: Path
) -> None:
    """To the exported files: the same bytes."""
    run = make_run(
        "dreamBooth",
        method={"dreamBooth": DREAMBOOTH},
        training={"steps": 3, "batchSize": 1, "learningRate": 1e-4},
        checkpoints={"everySteps": 2},
    )
    run = run.model_copy(update={"engine": on_disk(tmp_path / "disk")})

    def trained(folder: str, stops_after: int | None = None) -> list[Trained]:
        return in_group(processes[0], 2, train_with_zero, run, model, pictures, tmp_path / folder, stops_after)

    whole, stopped, resumed = trained("whole"), trained("torn", 2), trained("torn")
    assert [one.interrupted for one in stopped] == [True, True]
    assert [one.resumed_from for one in resumed] == [2, 2]
    assert resumed[0].weights == whole[0].weights
    assert resumed[0].losses == whole[0].losses
