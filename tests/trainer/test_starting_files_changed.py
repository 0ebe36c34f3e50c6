"""A file that a training starts from belongs to what it was trained on: a checkpoint of another file is not gone on
from, and processes with different files do not train together."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from finetune_api import TrainingRun
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.errors import RunError
from finetune_trainer.families import load_family
from finetune_trainer.group.team import ALONE, Alone, Team
from finetune_trainer.methods import make_methods
from finetune_trainer.training.loop import TrainOutcome, train
from safetensors.torch import save_file
from support.training import Memory, dataset_of, make_run

T = TypeVar("T")
URI = "s3://bucket/toy.safetensors"


@dataclass(frozen=True)
class OneFile:
    """Implements Files."""

    file: Path

    def path(self, uri: str) -> Path:
        assert uri == URI
        return self.file


def embedding(path: Path, value: float) -> Path:
    save_file({"<toy>": torch.full((1, 24), value)}, path)
    return path


def run_for() -> TrainingRun:
    toy = {"placeholder": "<toy>", "initialEmbeddingUri": URI}
    training = {"steps": 4, "learningRate": 1e-2}
    method = {"textualInversion": {"tokens": [toy]}}
    return make_run("textualInversion", method=method, training=training, checkpoints={"everySteps": 2})


def trained(
    file: Path, model: Path, pictures: Path, folder: Path, steps: int, listener: Memory, team: Team = ALONE
) -> TrainOutcome:
    calls = iter(range(steps))
    run = run_for()
    return train(
        run,
        load_family(model, torch.device("cpu")),
        make_methods(run.method, 0),
        dataset_of(run, pictures),
        [],
        folder / "cache",
        Checkpoints(folder / "checkpoints", None, "", "run", "a", 2),
        listener,
        lambda: "Training" in listener.messages and next(calls, None) is None,
        team=team,
        files=OneFile(file),
    )


def test_a_file_that_changed_begins_a_training_anew(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    one, other = embedding(tmp_path / "one.safetensors", 0.1), embedding(tmp_path / "other.safetensors", 0.2)
    trained(one, tiny_sd, pictures, tmp_path, 2, Memory())
    again = trained(one.rename(tmp_path / "moved.safetensors"), tiny_sd, pictures, tmp_path, 1, Memory())
    assert (again.resumed_from_step, again.step) == (2, 3), "the content counts, not the place"
    listener = Memory()
    outcome = trained(other, tiny_sd, pictures, tmp_path, 9, listener)
    assert (outcome.resumed_from_step, outcome.step) == (None, 4)
    field = "spec.method.textualInversion.tokens[0].initialEmbeddingUri"
    assert f"The checkpoint of step 3 is not used: {field} changed since." in listener.messages


class BesideAnother(Alone):
    """A process whose leader has read something else."""

    def share(self, value: T) -> T:
        if isinstance(value, dict):
            return {name: "another" if "Uri" in name else digest for name, digest in value.items()}  # type: ignore[return-value]  # still a dict of digests
        return value


def test_processes_that_start_from_different_files_are_refused(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    file = embedding(tmp_path / "one.safetensors", 0.1)
    with pytest.raises(RunError, match=r"fetched different things \(spec\.method\.textualInversion\.tokens\[0\]\."):
        trained(file, tiny_sd, pictures, tmp_path, 9, Memory(), BesideAnother())
