"""Checkpoints in a folder and in a real S3 server: the newest whole one wins, and damage costs no more than itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetune_trainer.checkpoints import Best, Checkpoints, NoTime, TrainingState
from finetune_trainer.engines.average import AverageState
from finetune_trainer.engines.base import EngineState
from finetune_trainer.engines.loss_scale import ScaleState
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.publish.store import Store, open_store
from support.s3_server import S3Server
from support.wire import wire_to

PREFIX = "checkpoints/run-1/"


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return FileStore(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3")
    return open_store(f"s3://{request.getfixturevalue('bucket')}/out/", server.credentials(), server.storage)


def state(step: int, numbers: int = 64) -> TrainingState:
    tensor = torch.full((numbers,), float(step))
    engine = EngineState({"weight": tensor}, {"weight/exp_avg": tensor})
    return TrainingState(step, engine, (0.5,) * step, (0.1,) * step, {})


def checkpoints(store: Store, folder: Path, attempt: str, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder / attempt, store, PREFIX, "digest", attempt, keep)


def found_by(store: Store, folder: Path, attempt: str = "reader") -> int | None:
    """The step that another pod, with an empty disk, goes on from."""
    found = checkpoints(store, folder, attempt).latest()
    assert found is None or torch.equal(found[1].engine.weights["weight"], state(found[0]).engine.weights["weight"])
    return found[0] if found else None


def test_all_of_a_state_comes_back(store: Store, tmp_path: Path) -> None:
    weights, average, best = ({"weight": torch.full((3, 2), value)} for value in (1.0, 2.0, 3.0))
    optimizer = {"weight/step": torch.tensor(7), "group/0/d": torch.tensor(0.1, dtype=torch.float64)}
    duties = ({"step": 6, "state": {"rounds": [1, 2]}}, {"step": 0, "state": {}})
    full = TrainingState(
        7,
        EngineState(weights, optimizer, AverageState(average, 5), ScaleState(1024.0, 7)),
        (0.5, 0.25),
        (1e-4, 2e-4),
        {"model": "m"},
        duties,
        Best(6, best),
        ended=True,
        skipped=3,
        skipped_in_a_row=1,
    )
    assert full.size == 4 * 18 + 16
    checkpoints(store, tmp_path, "pod-1").save(7, full)
    found = checkpoints(store, tmp_path, "reader").latest()
    assert found is not None
    step, back = found
    assert step == back.step == 7
    assert (back.losses, back.learning_rates) == ((0.5, 0.25), (1e-4, 2e-4))
    assert (back.digests, back.duties, back.ended) == ({"model": "m"}, duties, True)
    assert (back.skipped, back.skipped_in_a_row, back.engine.loss_scale) == (3, 1, ScaleState(1024.0, 7))
    assert back.best is not None
    assert back.engine.average is not None
    assert (back.best.step, back.engine.average.updates) == (6, 5)
    for name, tensors in full.tensors.items():
        assert back.tensors[name].keys() == tensors.keys()
        for key, value in tensors.items():
            assert torch.equal(back.tensors[name][key], value)
            assert back.tensors[name][key].dtype == value.dtype


def truncate(store: Store, name: str) -> None:
    store.put_bytes(name, (store.get_bytes(name) or b"")[:-9])


def change(store: Store, name: str) -> None:
    data = store.get_bytes(name) or b""
    store.put_bytes(name, data[:-1] + bytes([data[-1] ^ 1]))


def wrong_digest(store: Store, name: str) -> None:
    manifest = json.loads(store.get_bytes(name) or b"")
    manifest["files"]["weights.safetensors"]["sha256"] = "0" * 64
    store.put_bytes(name, json.dumps(manifest).encode())


def remove(store: Store, name: str) -> None:
    store.delete([name])


@pytest.mark.parametrize(
    ("store", "damage", "name"),
    [
        ("file", truncate, "weights.safetensors"),
        ("file", change, "optimizer.safetensors"),
        ("file", remove, "state.json"),
        ("file", remove, "manifest.json"),
        ("file", truncate, "manifest.json"),
        ("file", wrong_digest, "manifest.json"),
        ("s3", truncate, "weights.safetensors"),
        ("s3", remove, "state.json"),
        ("s3", wrong_digest, "manifest.json"),
    ],
    indirect=["store"],
)
def test_a_damaged_newest_one_falls_back_to_the_one_before(
    damage: Callable[[Store, str], None], name: str, store: Store, tmp_path: Path
) -> None:
    writer = checkpoints(store, tmp_path, "pod-1")
    writer.save(9, state(9))
    writer.save(10, state(10))
    assert found_by(store, tmp_path, "sound") == 10, "the newest, by number and not by letters"
    damage(store, f"{PREFIX}00000010-pod-1/{name}")
    assert found_by(store, tmp_path, "damaged") == 9


def test_the_newest_of_all_attempts_wins(store: Store, tmp_path: Path) -> None:
    checkpoints(store, tmp_path, "pod-2").save(20, state(20))
    checkpoints(store, tmp_path, "pod-1").save(30, state(30))  # a pod on a lost node that was ahead
    assert found_by(store, tmp_path) == 30


def test_a_damaged_one_pushes_out_none_that_is_whole(store: Store, tmp_path: Path) -> None:
    """Neither here nor in the store, where it looks newer than what comes after it."""
    writer = checkpoints(store, tmp_path, "pod-1")
    writer.save(4, state(4))
    writer.save(6, state(6))
    change(store, f"{PREFIX}00000006-pod-1/weights.safetensors")
    second = checkpoints(store, tmp_path, "pod-2", keep=1)
    found = second.latest()
    assert found is not None
    assert found[0] == 4
    second.save(5, state(5))
    assert {stored.key.split("/")[2] for stored in store.list(PREFIX)} == {"00000005-pod-2"}
    assert found_by(store, tmp_path) == 5


def test_with_a_slow_store_no_checkpoint_is_begun_that_the_grace_cannot_hold(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """The rate is measured on a real wire; the same checkpoint is stored where there is time."""
    left = [float("inf")]
    with wire_to(s3.endpoint) as wire:
        wire.bytes_per_second = 400_000
        storage = s3.storage.model_copy(update={"endpoint": wire.endpoint})
        store = open_store(f"s3://{bucket}/out", s3.credentials(), storage)
        writer = Checkpoints(tmp_path / "pod-1", store, PREFIX, "digest", "pod-1", 2, lambda: left[0])
        writer.save(1, state(1, 100_000))  # 800 kB: some two seconds
        wire.bytes_per_second = None

        left[0] = 1.0
        wire.sent.clear()
        with pytest.raises(NoTime, match=r"^1 MB take too long for the 1 s that are left of the grace: the last check"):
            writer.save(2, state(2, 100_000))
        assert wire.sent == [], "it was not even begun"
        assert not (tmp_path / "pod-1" / "00000002").exists()

        left[0] = 60.0
        writer.save(2, state(2, 100_000))
    assert {stored.key.split("/")[2] for stored in store_of(s3, bucket).list(PREFIX)} == {
        "00000001-pod-1",
        "00000002-pod-1",
    }


def store_of(s3: S3Server, bucket: str) -> Store:
    return open_store(f"s3://{bucket}/out", s3.credentials(), s3.storage)
