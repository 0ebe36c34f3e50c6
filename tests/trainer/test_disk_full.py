"""A disk that fills up while a checkpoint is written in the background: what was stored stays, half a checkpoint does
not, and a line says what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.checkpoints import files
from finetune_trainer.errors import DataError, RunError, room_on_disk
from safetensors import SafetensorError
from support.training import Memory, make_run, train_once

FULL = OSError(errno.ENOSPC, "No space left on device")
FULL_TOO = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("error", [FULL, FULL_TOO], ids=["OSError", "safetensors"])
def test_the_one_before_is_gone_on_from(
    error: Exception, tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(training={"steps": 8, "learningRate": 1e-2}, checkpoints={"everySteps": 2})
    save: Callable[..., None] = files.save_file
    calls: list[str] = []

    def fills_up(tensors: dict[str, Any], path: Path) -> None:
        calls.append(path.name)
        if len(calls) <= 3:
            save(tensors, path)
            return
        # what a disk has taken when it is full
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as disk:
        disk.setattr(files, "save_file", fills_up)
        listener = Memory()
        with (
            pytest.raises(
                RunError, match=r"^no space is left on the disk of \S+ \(.*No space left on device.*make room"
            ),
            room_on_disk(tmp_path),
        ):
            train_once(run, tiny_sd, pictures, tmp_path, listener=listener)
    # two files a checkpoint: the second one's optimizer did not fit
    assert calls == ["weights.safetensors", "optimizer.safetensors"] * 2
    assert listener.checkpoints == [2]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000002"]
    _, outcome = train_once(run, tiny_sd, pictures, tmp_path)
    _, whole = train_once(run, tiny_sd, pictures, tmp_path / "whole")
    assert (outcome.resumed_from_step, outcome.losses) == (2, whole.losses)


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FULL, True),
        (FULL_TOO, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (caused(ValueError("cannot write"), FULL), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("28"), False),
        # whoever knows more has said it
        (caused(DataError("known"), FULL), False),
    ],
    ids=str,
)
def test_what_is_a_full_disk(error: Exception, told: bool) -> None:
    with pytest.raises(Exception, match=r".") as raised, room_on_disk(Path("/work"), Path("/cache"), Path("/work")):
        raise error
    if told:
        assert type(raised.value) is RunError
        assert str(raised.value).startswith("no space is left on the disk of /work or /cache (")
    else:
        assert raised.value is error
