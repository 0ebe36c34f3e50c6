"""What offload to a disk asks of the machine, and where DeepSpeed has to be helped."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from finetune_api.engine import EngineSpec
from finetune_trainer.engines import deepspeed_disk
from finetune_trainer.engines.deepspeed_disk import (
    aligned_pieces,
    check_disk,
    check_room,
    claim_disk,
    mend_gradients,
    or_refused,
)
from finetune_trainer.errors import ConfigurationError
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


def on_disk(path: Path) -> EngineSpec:
    return EngineSpec(kind="DeepSpeed", zero_stage=3, offload_optimizer="Nvme", nvme_path=str(path))


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(
        ConfigurationError, match=r"nvmePath is .*/taken/offload, where this run cannot write .* O_DIRECT \(Not a dir"
    ):
        check_disk(on_disk(taken / "offload"), "cpu")


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize(
    ("compiled", "of", "what"),
    [
        (
            False,
            "cpu",
            r"was installed without .* with DS_BUILD_AIO=1 LDFLAGS=.* DS_ACCELERATOR=cpu in .*, or use Cpu",
        ),
        (
            True,
            "cuda",
            r"was compiled for cuda, and this run is on cpu; .* DS_ACCELERATOR=cpu",
        ),
    ],
)
def test_a_disk_needs_what_is_compiled_for_the_device(
    compiled: bool, of: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wheel of a package index has it."""
    from deepspeed import git_version_info

    monkeypatch.setitem(git_version_info.installed_ops, "async_io", compiled)
    monkeypatch.setattr(git_version_info, "accelerator_name", of)
    with pytest.raises(ConfigurationError, match=f"engine.offloadOptimizer is Nvme, but .*{what}"):
        check_disk(on_disk(tmp_path / "offload"), "cpu")
    assert list((tmp_path / "offload").iterdir()) == []
    monkeypatch.setitem(git_version_info.installed_ops, "async_io", True)
    check_disk(on_disk(tmp_path / "offload"), of)


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    """They would read each other's numbers."""
    first = claim_disk(str(tmp_path), 0)
    claim_disk(str(tmp_path), 1).close()
    with pytest.raises(ConfigurationError, match=r"engine.nvmePath is .*, which another run uses at the moment"):
        claim_disk(str(tmp_path), 0)
    first.close()
    claim_disk(str(tmp_path), 0).close()


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an attempt before left there is written over."""
    monkeypatch.setattr(deepspeed_disk, "disk_usage", lambda path: SimpleNamespace(free=3_000_000_000))
    check_room(str(tmp_path), 3_000_000_000)
    with pytest.raises(ConfigurationError, match=r"nvmePath is .*, where 3.0 GB are free, .* needs 3.1 GB; name"):
        check_room(str(tmp_path), 3_100_000_000)
    (tmp_path / "rank0").mkdir()
    (tmp_path / "rank0" / "1.tensor.swp").write_bytes(bytes(1_000_000))
    check_room(str(tmp_path), 3_001_000_000)


def test_memory_that_may_not_be_locked_is_refused() -> None:
    """DeepSpeed is given a tensor at address 0 then, and would write to it."""

    def locked(handle: object, count: int, example: Tensor) -> Tensor:
        return torch.empty(count if count < 1000 else 0, dtype=example.dtype)

    allocate = or_refused(locked, "cpu")
    assert allocate(None, 10, torch.zeros(1)).shape == (10,)
    with pytest.raises(ConfigurationError, match=r"needs a buffer of 16 MiB that is locked .* LimitMEMLOCK .* use Cpu"):
        allocate(None, 2**22, torch.zeros(1))


@pytest.mark.parametrize(
    ("offset", "count", "pieces"),
    [
        (0, 1024, [(0, 1024)]),
        (0, 1030, [(0, 1024), (1024, 1030)]),
        (4, 1024, [(0, 252), (252, 1020), (1020, 1024)]),
        (4, 100, [(0, 100)]),
        (256, 3, [(0, 3)]),
    ],
)
def test_gradients_are_cut_where_they_can_be_read_to(offset: int, count: int, pieces: list[tuple[int, int]]) -> None:
    assert aligned_pieces(offset, count, 256) == pieces


@given(st.integers(0, 10_000), st.integers(1, 10_000), st.sampled_from([128, 256, 512]))
def test_pieces_are_all_of_it_and_one_is_aligned(offset: int, count: int, alignment: int) -> None:
    pieces = aligned_pieces(offset, count, alignment)
    assert list(chain.from_iterable(range(*piece) for piece in pieces)) == list(range(count))
    odd = [1 for start, end in pieces if (offset + start) % alignment or (offset + end) % alignment]
    assert len(odd) <= 2
    assert all(end - start < alignment for start, end in pieces if (offset + start) % alignment)


def test_gradients_are_read_to_zeros() -> None:
    """A parameter without one would have what was in that memory before."""
    seen: list[Tensor] = []
    swapper = SimpleNamespace(
        numel_alignment=256,
        _swap_in_gradients=lambda aio_handle, parameter, dest_buffer: seen.append(dest_buffer.clone()),
    )
    mend_gradients(swapper)
    swapper._swap_in_gradients(aio_handle=None, parameter=torch.zeros(3), dest_buffer=torch.ones(4))
    assert seen[0].tolist() == [0, 0, 0, 0]
    whole = torch.arange(600.0)
    tensors, offsets = swapper._adjust_for_misaligned_lengths(tensors=[whole], offsets=[200])
    assert offsets == [200, 256, 768]
    assert torch.equal(torch.cat(tensors), whole)
