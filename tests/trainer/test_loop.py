"""What the loop reports, when it saves, and how it ends when something goes wrong."""

from pathlib import Path

import pytest
import torch
from finetune_api import ExitCode
from finetune_api.engine import EngineSpec
from finetune_trainer.data.samples import Batch
from finetune_trainer.engines import NonFiniteLoss, make_engine
from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.families import Family
from finetune_trainer.methods import ParameterGroup
from finetune_trainer.publish.file_store import FileStore
from support.duties import Scripted
from support.toys import batch_of
from support.training import Memory, make_run, train_once
from torch import Tensor, nn


def test_every_step_is_reported(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    training = {
        "steps": 30,
        "batchSize": 2,
        "gradientAccumulationSteps": 3,
        "learningRate": 0.01,
        "scheduler": {"name": "Linear"},
    }
    listener = Memory()
    _, outcome = train_once(make_run(training=training), tiny_sd, pictures, tmp_path, listener=listener)
    assert [report.step for report in listener.steps] == list(range(1, 31))
    assert {(report.total_steps, report.images) for report in listener.steps} == {(30, 6)}
    assert [report.learning_rate for report in listener.steps[:2]] == pytest.approx([0.01, 0.01 * 29 / 30])
    assert all(report.grad_norm > 0 and report.seconds > 0 for report in listener.steps)
    # the loss is smoothed over twenty steps, the outcome has every one
    assert listener.steps[0].loss == outcome.losses[0]
    assert listener.steps[-1].loss == outcome.loss == pytest.approx(sum(outcome.losses[-20:]) / 20)
    assert len(outcome.losses) == 30


def test_epochs_count_pictures_and_crops(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    run = make_run(
        training={"steps": None, "epochs": 2, "batchSize": 2, "learningRate": 0.01},
        dataset={"crop": "Random", "cropsPerPicture": 3},
    )
    _, outcome = train_once(run, tiny_sd, pictures, tmp_path)
    assert outcome.total_steps == outcome.step == 9


@pytest.mark.parametrize(("every_steps", "saved"), [(None, [6]), (2, [2, 4, 6]), (4, [4, 6]), (6, [6])], ids=str)
def test_checkpoints_are_made_on_time_and_at_the_end(
    every_steps: int | None, saved: list[int], tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    listener = Memory()
    changes = {} if every_steps is None else {"checkpoints": {"everySteps": every_steps}}
    train_once(make_run(**changes), tiny_sd, pictures, tmp_path, listener=listener)
    assert listener.checkpoints == saved


def test_bf16_learns_much_as_fp32_does(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    training = {"steps": 6, "batchSize": 2, "learningRate": 1e-3}
    exact = make_run("dreamBooth", training=training)
    coarse = make_run("dreamBooth", training=training | {"precision": "bf16"})
    _, one = train_once(exact, tiny_sd, pictures, tmp_path / "fp32")
    family, other = train_once(coarse, tiny_sd, pictures, tmp_path / "bf16")
    assert other.losses == pytest.approx(one.losses, rel=2e-2)
    assert other.losses != one.losses
    assert {value.dtype for value in family.parts["unet"].parameters()} == {torch.float32}


class Scalar(nn.Module):
    """Its loss is its one weight times what the batch's weights say."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = self.weight * batch.weights
        return losses.sum(), losses


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_step_that_diverges_changes_no_weight(bad: float) -> None:
    module, engine = Scalar(), make_engine(EngineSpec(), torch.device("cpu"))
    group = ParameterGroup("all", {"weight": module.weight})
    engine.prepare(module, [group], make_run().training, [batch_of(1.0)])
    engine.step([batch_of(1.0)], 1.0)
    before = engine.state()
    assert engine.step([batch_of(1.0), batch_of(bad)], 1.0).skipped
    after = engine.state()
    assert after.weights["weight"] == before.weights["weight"] != 2.0
    assert after.optimizer.keys() == {"weight/step", "weight/exp_avg", "weight/exp_avg_sq"}
    assert all(torch.equal(after.optimizer[key], value) for key, value in before.optimizer.items())
    result = engine.step([batch_of(1.0), batch_of(2.0)], 1.0)
    assert float(result.loss) == pytest.approx(3 * float(before.weights["weight"]))
    assert float(result.grad_norm) == 3.0


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (
            0,
            r"^steps 1 to 3 of 6: the loss is nan .*before any weight was changed: .*; use another baseModel$",
        ),
        (2, r"^steps 3 to 5 of 6: the loss is nan .* and would again; use a smaller training\.learningRate$"),
    ],
)
def test_divergence_is_told_with_its_step_and_not_tried_again(
    before: int, message: str, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    def poison(family: Family) -> None:
        with torch.no_grad():
            next(family.parts["unet"].parameters())[0] = float("nan")

    def duties_of(family: Family) -> list[Scripted]:
        if before == 0:
            poison(family)
        return [Scripted(look=lambda step: poison(family) if step == before else None)]

    with pytest.raises(NonFiniteLoss, match=message) as caught:
        train_once(make_run("dreamBooth"), tiny_sd, pictures, tmp_path, duties_of=duties_of)
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION


def test_a_warm_up_longer_than_the_epochs_is_refused(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    """Admission cannot know: it has not seen the pictures."""
    training = {"steps": None, "epochs": 3, "learningRate": 0.01, "scheduler": {"name": "Cosine", "warmupSteps": 9}}
    with pytest.raises(ConfigurationError, match=r"warmupSteps is 9, but the whole training has 9 steps"):
        train_once(make_run(training=training), tiny_sd, pictures, tmp_path)
    training["epochs"] = 4
    _, outcome = train_once(make_run(training=training), tiny_sd, pictures, tmp_path)
    assert outcome.step == 12


def test_a_state_of_other_parameters_is_refused() -> None:
    engines = [make_engine(EngineSpec(), torch.device("cpu")) for _ in range(2)]
    for name, engine in zip(("weight", "other"), engines, strict=True):
        module = Scalar()
        engine.prepare(module, [ParameterGroup("all", {name: module.weight})], make_run().training, [])
    with pytest.raises(ValueError, match="the state belongs to other parameters: other, weight"):
        engines[0].load(engines[1].state())


class Flaky(FileStore):
    """Fails as a store fails that is away for a moment, or as one that refuses."""

    def __init__(self, folder: Path, error: RunError) -> None:
        super().__init__(folder)
        self.error = error

    def put_file(self, key: str, path: Path) -> None:
        raise self.error


def test_a_store_that_is_away_does_not_end_the_training(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    listener, store = Memory(), Flaky(tmp_path / "store", RunError("no answer"))
    run = make_run(checkpoints={"everySteps": 3})
    _, outcome = train_once(run, tiny_sd, pictures, tmp_path, listener=listener, store=store)
    assert outcome.step == 6
    assert "The checkpoint of step 3 was not uploaded: no answer" in listener.messages


def test_a_store_that_refuses_does(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    store = Flaky(tmp_path / "store", ConfigurationError("output.secretRef: access denied"))
    with pytest.raises(ConfigurationError, match="access denied"):
        train_once(make_run(), tiny_sd, pictures, tmp_path, store=store)


def test_what_is_not_carried_out_is_refused_here_too() -> None:
    """Admission refuses it already; a document written by hand may come another way."""
    for engine in ({"offload_optimizer": "Cpu"}, {"offload_parameters": "Cpu"}):
        with pytest.raises(ConfigurationError, match="remove offloadOptimizer and offloadParameters"):
            make_engine(EngineSpec().model_copy(update=engine), torch.device("cpu"))
