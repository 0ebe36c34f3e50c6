"""Loadable weights every so many steps, whoever made them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from finetune_api import TrainingRun
from finetune_trainer.background import Background
from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.exports import export_weights
from finetune_trainer.exports.on_the_way import WeightsOnTheWay
from finetune_trainer.families import Family
from finetune_trainer.methods import make_methods
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.publish.on_the_way import Exports, exports_prefix
from finetune_trainer.telemetry.listener import StepReport
from support.training import Memory, Trained, Unhurried, make_run, train_once

DIGEST = "d" * 64


def run_of(technique: str, steps: int = 7) -> TrainingRun:
    return make_run(technique, training={"steps": steps, "learningRate": 1e-2}, exports={"everySteps": 2})


def attempt(
    run: TrainingRun,
    store: FileStore,
    model: Path,
    pictures: Path,
    folder: Path,
    looks: int = 99,
    listener: Memory | None = None,
    background: Background | None = None,
) -> tuple[Family, Trained]:
    """Named as its folder, with weights and checkpoints in `store`, stopped after so many looks."""
    exports, methods = Exports(store, "run-1", DIGEST, folder.name), make_methods(run.method, 0)
    heard, left = listener or Memory(), iter(range(looks))
    background = background or Unhurried()

    def publish(step: int, made: Path, files: Sequence[Path]) -> None:
        exports.publish(step, made, [path.as_posix() for path in files])

    return train_once(
        run,
        model,
        pictures,
        folder,
        lambda: next(left, None) is None,
        heard,
        store,
        folder.name,
        duties_of=lambda family: [
            WeightsOnTheWay(run, family, methods, 2, folder / "export", publish, heard, background)
        ],
        methods=methods,
        background=background,
    )


@pytest.mark.parametrize("technique", ["lora", "dreamBooth"])
def test_they_are_the_weights_of_their_step_and_outlive_the_attempt(
    technique: str, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    run, store = run_of(technique), FileStore(tmp_path / "store")
    _, stopped = attempt(run, store, tiny_sd, pictures, tmp_path / "first", looks=5)
    _, outcome = attempt(run, store, tiny_sd, pictures, tmp_path / "second")
    assert (stopped.step, outcome.resumed_from_step, outcome.step) == (5, 5, 7)

    listed, files = Exports(store, "run-1", DIGEST, "second").found(7)
    assert [(one.step, one.weights[0].split("/")[2]) for one in listed] == [
        (2, "00000002-first"),
        (4, "00000004-first"),
        (6, "00000006-second"),
    ]
    assert {file.path for file in files} == {stored.key for stored in store.list(exports_prefix("run-1"))}
    for file in files:
        data = store.get_bytes(file.path) or b""
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())

    short = run_of(technique, steps=4)
    family, ended = train_once(short, tiny_sd, pictures, tmp_path / "short")
    made = export_weights(short, family, [method.result() for method in ended.methods], tmp_path / "short" / "export")
    prefix = f"{exports_prefix('run-1')}00000004-first/"
    for path in made:
        name = path.relative_to(tmp_path / "short" / "export").as_posix()
        assert store.get_bytes(prefix + name) == path.read_bytes()
    assert set(listed[1].weights) <= {file.path for file in files}


def test_what_did_not_arrive_whole_is_not_named(tmp_path: Path) -> None:
    class Forgetful(FileStore):
        """A disk that is full and does not say so."""

        def put_file(self, key: str, path: Path) -> None:
            self.put_bytes(key, b"-")

    store, folder = Forgetful(tmp_path / "store"), tmp_path / "made"
    folder.mkdir()
    (folder / "weights").write_bytes(b"many")
    exports = Exports(store, "run-1", DIGEST, "mine")
    with pytest.raises(RunError, match="has 1 bytes after the upload instead of 4"):
        exports.publish(2, folder, ["weights"])
    assert exports.found(2) == ((), ())


def test_what_is_not_of_this_run_is_not_listed(tmp_path: Path) -> None:
    store, folder = FileStore(tmp_path / "store"), tmp_path / "made"
    folder.mkdir()
    (folder / "weights").write_bytes(b"-")
    for uid, digest, name, step in (
        ("run-1", DIGEST, "old", 2),
        ("run-1", DIGEST, "mine", 2),
        ("run-1", DIGEST, "old", 8),
        ("run-1", "e" * 64, "edited", 4),
        ("run-2", DIGEST, "other", 4),
    ):
        Exports(store, uid, digest, name).publish(step, folder, ["weights"])
    store.put_bytes("exports/run-1/00000006-half/weights", b"-")
    store.put_bytes("exports/run-1/00000006-bad/export.json", b"{")
    listed, files = Exports(store, "run-1", DIGEST, "mine").found(7)
    assert [one.weights for one in listed] == [("exports/run-1/00000002-mine/weights",)]
    assert [file.path for file in files] == [
        f"exports/run-1/00000002-mine/{name}" for name in ("weights", "export.json")
    ]
    assert [one.step for one in Exports(store, "run-1", DIGEST, "later").found(8)[0]] == [2, 8]


def test_a_store_that_is_away_does_not_end_the_training_and_one_that_refuses_does(
    tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    class Flaky(FileStore):
        """Takes checkpoints, but no weights."""

        error: RunError = RunError("no answer")

        def put_file(self, key: str, path: Path) -> None:
            if key.startswith("exports/"):
                raise self.error
            super().put_file(key, path)

    store, listener = Flaky(tmp_path / "store"), Memory()
    _, outcome = attempt(run_of("lora"), store, tiny_sd, pictures, tmp_path / "a", listener=listener)
    assert outcome.step == 7
    assert "The weights of step 2 were not uploaded: no answer" in listener.messages
    assert Exports(store, "run-1", DIGEST, "a").found(7) == ((), ())
    store.error = ConfigurationError("access denied")
    with pytest.raises(ConfigurationError, match="access denied"):
        attempt(run_of("lora", steps=8), store, tiny_sd, pictures, tmp_path / "b")


def test_a_store_that_hangs_stops_no_step_and_what_it_cannot_take_is_left_out(
    tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    """Two are on their way, written as they were at their steps; a checkpoint comes after the weights before it."""
    gate = threading.Event()
    order: list[str] = []

    class Slow(FileStore):
        def put_file(self, key: str, path: Path) -> None:
            if key.startswith("exports/") and not gate.wait(60):
                raise RunError("the training waited for the store")
            super().put_file(key, path)
            if path.name in ("manifest.json", "tiny.safetensors"):
                order.append(key.split("/")[2 if key.startswith("exports/") else 1])

    class Opens(Memory):
        def step(self, report: StepReport) -> None:
            super().step(report)
            if report.step == 11:
                gate.set()

    run, listener, store = run_of("lora", steps=11), Opens(), Slow(tmp_path / "store")
    run = run.model_copy(update={"checkpoints": run.checkpoints.model_copy(update={"every_steps": 3})})
    attempt(run, store, tiny_sd, pictures, tmp_path / "slow", listener=listener, background=Background())
    assert [report.step for report in listener.steps] == list(range(1, 12))
    left_out = [message.split()[4] for message in listener.messages if "are left out" in message]
    assert left_out == ["6", "8", "10"]
    assert "those of the steps 2 and 4 are still on their way" in " ".join(listener.messages)
    assert order == ["00000002-slow", "00000003-slow", "00000004-slow", "00000011-slow"]

    whole = FileStore(tmp_path / "whole-store")
    attempt(run, whole, tiny_sd, pictures, tmp_path / "slow2", background=Unhurried())
    for step in (2, 4):
        one, other = (
            {
                stored.key.rpartition("/")[2]: each.get_bytes(stored.key)
                for stored in each.list(f"exports/run-1/{step:08d}")
            }
            for each in (store, whole)
        )
        assert one.keys() == other.keys()
        assert {name for name in one if one[name] != other[name]} == {"export.json"}, "it names the attempt"
