"""A run that is judged on the way: what is told, which weights it ends with; an interruption changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from finetune_api import TrainingRun
from finetune_api.outputs import JudgementSpec
from finetune_trainer.cli import app
from finetune_trainer.data.held_out import held_out
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.errors import ConfigurationError, Interrupted
from finetune_trainer.evaluation.best import best_of
from finetune_trainer.evaluation.encoders import load_encoder
from finetune_trainer.evaluation.judging import Judging, encoder_of
from finetune_trainer.evaluation.meanings import FIGURES
from finetune_trainer.families import Family, load_family
from finetune_trainer.sources.builtin import open_builtin
from finetune_trainer.training.duties import Duty
from support.tiny_encoders import build_tiny_clip, build_tiny_dino
from support.training import Memory, dataset_of, make_pictures, make_run, train_once
from typer.testing import CliRunner

CPU = torch.device("cpu")
FIGURE = Path(__file__).parents[2] / "examples/subjects/figure"
NO_CLASSES = PictureSet.of([], "class pictures")
Undisturbed = tuple[dict[str, torch.Tensor], Judging, int, Memory]


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_dino(tmp_path_factory.mktemp("dino"))


def judged_run(**judgement: object) -> TrainingRun:
    return make_run(
        training={"steps": 6, "learningRate": 0.05},
        validation={"prompts": ["sks dog", "dog", "a cat"], "imagesPerPrompt": 2, "inferenceSteps": 2},
        judgement={"imagesPerPrompt": 4, "everySteps": 2, "maxLeak": 1, **judgement},
        checkpoints={"everySteps": 2},
    )


class Once:
    """Says "stop" the n-th time it is asked, and from then on."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def train_judged(
    run: TrainingRun,
    model: Path,
    dino: Path,
    pictures: Path,
    folder: Path,
    listener: Memory,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, torch.Tensor], Judging, int]:
    """The weights that it ends with, and the step that they are of."""
    made: list[Judging] = []

    def duties_of(family: Family) -> Sequence[Duty]:
        encoder = load_encoder(dino, CPU)
        made.append(
            Judging(run, family, encoder, dataset_of(run, pictures), NO_CLASSES, listener, should_stop, lambda: 0.0)
        )
        return made[0].duties

    family, outcome = train_once(run, model, pictures, folder, should_stop, listener, duties_of=duties_of)
    (judging,) = made
    if outcome.interrupted:
        raise Interrupted("stopped")
    step = outcome.best_step if outcome.best_step is not None else outcome.step
    weights = {name: value.clone() for name, value in family.parts["unet"].state_dict().items() if "lora" in name}
    return weights, judging, step


@pytest.fixture(scope="module")
def undisturbed(tiny_sd: Path, dino: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    listener = Memory()
    return *train_judged(judged_run(), tiny_sd, dino, pictures, tmp_path_factory.mktemp("run"), listener), listener


def test_every_judged_step_is_told(undisturbed: Undisturbed) -> None:
    *_, listener = undisturbed
    assert [report.step for report in listener.judgements] == [2, 4, 6]
    for report in listener.judgements:
        assert set(report.figures) == {
            "fidelity", "diversity", "leak", "drift", "otherLeak", "otherDrift", "nearestDistance", "nearCopies",
            "trainingLoss",
        }  # fmt: skip
        assert set(report.figures) <= set(FIGURES)
        assert report.figures["drift"] > 0


def test_the_run_ends_with_the_weights_of_the_best_step(
    undisturbed: Undisturbed, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    weights, judging, step, listener = undisturbed
    found = judging.finish(step)
    assert found.judgement is not None
    best = best_of(found.judgement.history, 1)
    assert best is not None
    assert best.step == step == found.judgement.step == found.judgement.best_step == listener.judgements[-1].best_step
    assert best.step != 6, "or the test would show nothing"
    assert {name: figure.value for name, figure in best.figures.items()} == {
        name: figure.value for name, figure in found.judgement.after.items()
    }, "what is reported is judged of what is published"
    # a run of so many steps has the same weights
    short = judged_run(keepBest=False).model_copy(update={"judgement": None})
    short = short.model_copy(update={"training": short.training.model_copy(update={"steps": step})})
    family, _ = train_once(short, tiny_sd, pictures, tmp_path)
    for name, value in weights.items():
        assert torch.equal(family.parts["unet"].state_dict()[name], value)


@pytest.mark.parametrize("asked", [1, 4, 9, 14])
def test_an_interruption_changes_nothing(
    asked: int, undisturbed: Undisturbed, tiny_sd: Path, dino: Path, pictures: Path, tmp_path: Path
) -> None:
    """While the base model draws, between steps, in the middle of a judgement, in that of the last step."""
    whole, _, best, heard = undisturbed
    listener = Memory()
    with pytest.raises(Interrupted):
        train_judged(judged_run(), tiny_sd, dino, pictures, tmp_path, listener, Once(asked))
    weights, judging, step = train_judged(judged_run(), tiny_sd, dino, pictures, tmp_path, listener)
    assert step == best
    assert weights.keys() == whole.keys()
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
    found = judging.finish(step)
    assert found.judgement is not None
    figures = {one.step: {n: f.value for n, f in one.figures.items()} for one in found.judgement.history}
    assert figures == {report.step: dict(report.figures) for report in heard.judgements}
    assert [step for step, _ in found.on_the_way] == [0, 2, 4, 6], "pictures of before the interruption too"


@pytest.mark.parametrize(
    ("technique", "changes"),
    [
        ("lora", {"training": {"ema": True}}),
        ("dreamBooth", {}),
        ("textualInversion", {"method": {"textualInversion": {"tokens": [{"placeholder": "<dog>"}]}}}),
        ("hypernetwork", {}),
    ],
    ids=["averaged", "all weights", "a new word", "a hypernetwork"],
)
def test_pictures_of_the_end_are_those_of_the_best_step_drawn_again(
    technique: str, changes: dict, tiny_sd: Path, dino: Path, pictures: Path, tmp_path: Path
) -> None:
    """Whatever is trained: the weights that were kept are those that were judged."""
    run = make_run(
        technique,
        **changes | {"training": {"steps": 3, "learningRate": 0.01, **changes.get("training", {})}},
        validation={"imagesPerPrompt": 1, "inferenceSteps": 2},
        judgement={"imagesPerPrompt": 2, "everySteps": 1},
    )
    _, judging, step = train_judged(run, tiny_sd, dino, pictures, tmp_path, Memory())
    again = judging.finish(-1).judgement  # a step that nobody has judged: drawn anew
    assert again is not None
    judged = next(one for one in again.history if one.step == step)
    assert again.after == judged.figures
    others = [one.figures for one in again.history if one.step != step]
    assert all(figures != judged.figures for figures in others), "each step draws something else"


def test_patience_ends_the_training(tiny_sd: Path, dino: Path, pictures: Path, tmp_path: Path) -> None:
    listener = Memory()
    run = judged_run(patience=1, everySteps=1)
    *_, step = train_judged(run, tiny_sd, dino, pictures, tmp_path, listener)
    last = listener.judgements[-1].step
    assert last == step + 1 < 6, "one judgement without a better step"
    assert len(listener.steps) == last
    assert any(f"Ends at step {last}" in line for line in listener.messages)


def test_without_an_encoder_pictures_are_drawn_and_nothing_is_judged(tiny_sd: Path, pictures: Path) -> None:
    run = make_run(validation={"imagesPerPrompt": 2, "inferenceSteps": 2, "everySteps": 2})
    judging = Judging(
        run, load_family(tiny_sd, CPU), None, dataset_of(run, pictures), NO_CLASSES, Memory(), lambda: False
    )
    (duty,) = judging.duties
    assert duty.every == 2
    duty(2)
    state = json.loads(json.dumps(duty.state()))
    duty.load(state)
    found = judging.finish(6)
    assert found.judgement is None
    assert [(step, [len(row) for row in rows]) for step, rows in found.on_the_way] == [(0, [2]), (2, [2])]
    assert [len(row) for row in found.after] == [2]


def test_pictures_that_are_held_out_are_compared_with_nobody(tiny_sd: Path, dino: Path, tmp_path: Path) -> None:
    pictures = PictureSet.open(make_pictures(tmp_path, 20))
    held = held_out(judged_run(), 20)
    judging = Judging(
        judged_run(),
        load_family(tiny_sd, CPU),
        load_encoder(dino, CPU),
        dataset_of(judged_run(), pictures),
        NO_CLASSES,
        Memory(),
        lambda: False,
    )
    found = judging.finish(0).judgement
    assert found is not None
    trained = PictureSet(tuple(one for number, one in enumerate(pictures.pictures) if number not in held))
    alone = judged_run().model_copy(update={"judgement": JudgementSpec(images_per_prompt=4)})
    same = Judging(
        alone,
        load_family(tiny_sd, CPU),
        load_encoder(dino, CPU),
        dataset_of(alone, trained),
        NO_CLASSES,
        Memory(),
        lambda: False,
    )
    by_hand = same.finish(0).judgement
    assert by_hand is not None
    assert found.after["fidelity"] == by_hand.after["fidelity"]
    assert found.after["validationLoss"].n == 2


def test_who_judges(tiny_sd: Path, dino: Path) -> None:
    plain, asked = make_run(), make_run(judgement={})
    assert encoder_of(plain, None, tiny_sd, CPU) is None
    assert "tiny-shapes" in encoder_of(plain, None, open_builtin("builtin://tiny-shapes"), CPU).name
    assert encoder_of(asked, dino, open_builtin("builtin://tiny-shapes"), CPU).name == "dinov2, 16 features"
    with pytest.raises(
        ConfigurationError, match=r"^spec\.judgement\.encoderUri is not set, and .* no judge of its own"
    ):
        encoder_of(asked, None, tiny_sd, CPU)


def test_tiny_shapes_knows_what_it_draws_and_has_not_learned_the_subject_yet() -> None:
    """The base model judged by its own classifier, before any training."""
    run = make_run(
        method={"lora": {"prompt": "a photo of a sks circle", "rank": 4}},
        validation={"prompts": ["a photo of a sks circle on a red background", "a circle"], "inferenceSteps": 8},
        judgement={"imagesPerPrompt": 6},
    )
    run = run.model_copy(update={"validation": run.validation.model_copy(update={"guidance_scale": 4.0})})
    family = load_family(open_builtin("builtin://tiny-shapes"), CPU)
    encoder, pictures = encoder_of(run, None, family.folder, CPU), dataset_of(run, FIGURE)
    judging = Judging(run, family, encoder, pictures, NO_CLASSES, Memory(), lambda: False)
    found = judging.finish(0).judgement
    assert found is not None
    assert found.by_classifier
    after = {name: figure.value for name, figure in found.after.items()}
    assert (after["fidelity"], after["leak"], after["drift"], after["nearCopies"]) == (0, 0, 0, 0)
    assert (after["classAccuracy"], after["promptFidelity"]) == (1, 1), "circles, and red backgrounds"
    assert found.after["leak"].high > 0.3, "six pictures prove little"


def test_a_judged_run_from_the_command_line(
    tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clip = build_tiny_clip(tmp_path / "clip")
    shutil.copytree(pictures, tmp_path / "pictures")
    spec = {
        "baseModel": {"uri": f"file://{tiny_sd}"},
        "method": {"lora": {"prompt": "a photo of sks dog", "rank": 2}},
        "dataset": {"uri": "file://./pictures"},
        "training": {"steps": 4, "learningRate": 0.01},
        "validation": {"imagesPerPrompt": 2, "inferenceSteps": 2},
        "judgement": {"encoderUri": f"file://{clip}", "everySteps": 2, "imagesPerPrompt": 3},
        "output": {"uri": "file://./results"},
    }
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "dog"}, "spec": spec}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    result = CliRunner().invoke(app, ["run", "job.yaml"])
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "results/manifest.json").read_text())
    judged = manifest["judged"]
    assert judged["encoder"] == "clip, 12 features"
    assert judged["imagesPerPrompt"] == 3
    assert judged["step"] == judged["bestStep"]
    assert {"fidelity", "promptFidelity", "leak", "drift"} <= judged["figures"].keys() <= set(FIGURES)
    fidelity = judged["figures"]["fidelity"]
    assert fidelity["low"] <= fidelity["value"] <= fidelity["high"]
    assert fidelity["n"] == 3
    report = next((tmp_path / "results").rglob("report.html")).read_text()
    for words in ("Subject fidelity", "On the way", "clip, 12 features", "a photo of dog"):
        assert words in report
