"""A training that was stopped or killed, however often, ends with the same bytes as one that was not."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from finetune_api import Progress, TrainingRun
from finetune_api.progress import Stage
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.exports import export_weights
from finetune_trainer.families import Family
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.telemetry.board import Board
from support.power_cut import KillsAt, PowerCut
from support.training import Memory, Trained, make_pictures, make_run, train_once

STEPS = 9


def run_for(technique: str) -> TrainingRun:
    return make_run(
        technique,
        True,
        training={
            "steps": STEPS,
            "batchSize": 2,
            "gradientAccumulationSteps": 2,
            "scheduler": {"name": "Cosine", "warmupSteps": 2},
        },
        dataset={"flip": True, "crop": "Random", "cropsPerPicture": 3},
        checkpoints={"everySteps": 2},
    )


def exported(run: TrainingRun, family: Family, outcome: Trained, folder: Path) -> dict[str, bytes]:
    files = export_weights(run, family, [method.result() for method in outcome.methods], folder / "export")
    return {path.relative_to(folder / "export").as_posix(): path.read_bytes() for path in files}


def stops_after(calls: int) -> Callable[[], bool]:
    left = iter(range(calls))
    return lambda: next(left, None) is None


@pytest.mark.parametrize("technique", ["lora", "dreamBooth"])
@pytest.mark.parametrize("luck", [0, 1])
def test_stopped_and_killed_at_random_steps(
    technique: str, luck: int, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    run, whole, torn = run_for(technique), tmp_path / "whole", tmp_path / "torn"
    family, outcome = train_once(run, tiny_sd, pictures, whole)
    expected = exported(run, family, outcome, whole)
    assert outcome.step == STEPS
    assert not outcome.interrupted

    chance = random.Random(luck)
    _, stopped = train_once(run, tiny_sd, pictures, torn, stops_after(chance.randint(1, 3)))
    assert stopped.interrupted
    killer = KillsAt(chance.randint(stopped.step + 3, STEPS - 2))
    with pytest.raises(PowerCut):
        train_once(run, tiny_sd, pictures, torn, listener=killer)
    assert killer.resumed_from == stopped.step
    last = Memory()
    family, finished = train_once(run, tiny_sd, pictures, torn, listener=last)

    saved = max(step for step in (stopped.step, *killer.checkpoints))
    assert (finished.resumed_from_step, last.resumed_from) == (saved, saved)
    assert finished.losses == outcome.losses
    assert last.steps[-1].loss == outcome.loss
    assert exported(run, family, finished, torn) == expected


def test_another_pod_goes_on_from_the_store(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    """And makes its caches anew: their absence changes nothing."""
    run, store = run_for("lora"), FileStore(tmp_path / "store")
    family, outcome = train_once(run, tiny_sd, pictures, tmp_path / "whole")
    train_once(run, tiny_sd, pictures, tmp_path / "a", stops_after(5), store=store, attempt="a")
    again, finished = train_once(run, tiny_sd, pictures, tmp_path / "b", store=store, attempt="b-b")
    assert finished.resumed_from_step == 5
    assert exported(run, again, finished, tmp_path / "b") == exported(run, family, outcome, tmp_path / "whole")


def test_from_its_first_answer_in_training_a_trainer_says_where_it_went_on(
    tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    class Watched(Memory):
        """Asks for /progress at the very moment the stage is told."""

        def __init__(self) -> None:
            super().__init__()
            self.board = Board("run-1", "pod-1")
            self.first: list[Progress] = []

        def begins(self, total_steps: int, resumed_from: int | None) -> None:
            self.board.begins(total_steps, resumed_from)

        def stage(self, name: Stage) -> None:
            super().stage(name)
            self.board.stage(name)
            self.first.append(self.board.progress())

    run, whole, resumed = run_for("lora"), Watched(), Watched()
    train_once(run, tiny_sd, pictures, tmp_path, stops_after(3), listener=whole)
    train_once(run, tiny_sd, pictures, tmp_path, listener=resumed)
    answers = [(p.stage, p.step, p.total_steps, p.resumed_from_step) for p in (*whole.first, *resumed.first)]
    assert answers == [("Training", 0, STEPS, None), ("Training", 3, STEPS, 3)]


def test_a_finished_training_is_not_trained_further(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    run = run_for("lora")
    family, outcome = train_once(run, tiny_sd, pictures, tmp_path)
    expected = exported(run, family, outcome, tmp_path)
    listener = Memory()
    family, again = train_once(run, tiny_sd, pictures, tmp_path, listener=listener)
    assert listener.steps == []
    assert (again.step, again.loss, again.resumed_from_step) == (STEPS, outcome.loss, STEPS)
    assert exported(run, family, again, tmp_path) == expected


def test_other_pictures_are_not_trained_on_from_an_old_checkpoint(
    tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    run, listener = run_for("lora"), Memory()
    train_once(run, tiny_sd, pictures, tmp_path, stops_after(4))
    others = make_pictures(tmp_path / "others", 2)
    _, stopped = train_once(run, tiny_sd, others, tmp_path, stops_after(2), listener=listener)
    assert (stopped.resumed_from_step, stopped.step) == (None, 2)
    _, outcome = train_once(run, tiny_sd, others, tmp_path)
    assert outcome.resumed_from_step == 2
    assert "The checkpoint of step 4 is not used: pictures changed since." in listener.messages


def test_damaged_checkpoints_are_passed_over(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    run = run_for("lora")
    train_once(run, tiny_sd, pictures, tmp_path, stops_after(6))
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["00000004", "00000006"]
    weights = folder / "00000006" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (folder / "00000008").mkdir()
    (folder / "00000008" / "manifest.json").write_text("{")
    found = Checkpoints(folder, None, "", "run", "x", 2).latest()
    assert found is not None
    assert found[0] == found[1].step == 4
    assert Checkpoints(folder, None, "", "another run", "x", 2).latest() is None
    _, outcome = train_once(run, tiny_sd, pictures, tmp_path)
    assert outcome.resumed_from_step == 4


@pytest.mark.parametrize("keep", [1, 3])
def test_checkpoints_of_another_run_do_not_push_out_new_ones(
    keep: int, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    """Such as when a file was edited and is run again in the same place."""
    run, store = run_for("lora"), FileStore(tmp_path / "store")
    train_once(run, tiny_sd, pictures, tmp_path, stops_after(6), store=store)
    found = Checkpoints(tmp_path / "checkpoints", store, "checkpoints/", "run", "x", 2).latest()
    assert found is not None
    edited = Checkpoints(tmp_path / "checkpoints", store, "checkpoints/", "edited", "x", keep)
    assert edited.latest() is None
    for step in (1, 2):
        edited.save(step, replace(found[1], step=step))
        newest = edited.latest()
        assert newest is not None
        assert newest[0] == step
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000001", "00000002"][-keep:]
    elsewhere = Checkpoints(tmp_path / "elsewhere", store, "checkpoints/", "edited", "y", keep).latest()
    assert elsewhere is not None
    assert elsewhere[0] == 2


def test_in_the_store_a_checkpoint_counts_when_its_manifest_is_there(
    tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    run, root = run_for("lora"), tmp_path / "store"
    train_once(run, tiny_sd, pictures, tmp_path / "a", stops_after(6), store=FileStore(root), attempt="a")
    kept = sorted(path.name for path in (root / "checkpoints").iterdir() if any(path.iterdir()))
    assert kept == ["00000004-a", "00000006-a"]
    (root / "checkpoints" / "00000006-a" / "manifest.json").unlink()
    checkpoints = Checkpoints(tmp_path / "b", FileStore(root), "checkpoints/", "run", "b", 2)
    found = checkpoints.latest()
    assert found is not None
    assert found[0] == 4
    checkpoints.clear()
    assert FileStore(root).list("") == []
    assert checkpoints.latest() is None


def test_the_latents_of_a_cache_are_those_of_the_pictures(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    run = run_for("lora")
    _, first = train_once(run, tiny_sd, pictures, tmp_path / "a")
    files = sorted((tmp_path / "a" / "cache" / "latents").iterdir())
    items = len(PictureSet.open(pictures)) * 3
    assert items <= len(files) <= items * 2 + 4  # crops, some mirrored, and class pictures
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "cache").rename(tmp_path / "b" / "cache")
    _, second = train_once(run, tiny_sd, pictures, tmp_path / "b")
    assert second.losses == first.losses
