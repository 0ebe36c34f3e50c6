"""The loss with fixed noise: on pictures that were held out where some can be spared, else on those trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.data.draw import Purpose, draw
from finetune_trainer.data.framing import CENTRE, frame
from finetune_trainer.data.held_out import held_out
from finetune_trainer.data.pictures import PictureSet, to_pixels
from finetune_trainer.evaluation.fixed_noise import FixedNoiseLoss
from finetune_trainer.evaluation.wording import wording_of
from finetune_trainer.families import Family, load_family
from finetune_trainer.methods import make_methods
from finetune_trainer.training.making_samples import make_samples
from support.tiny_sdxl import build_tiny_sdxl
from support.training import dataset_of, make_pictures, make_run

CPU = torch.device("cpu")
NONE = PictureSet.of([], "class pictures")


@pytest.fixture
def family(tiny_sd: Path) -> Family:
    return load_family(tiny_sd, CPU)


@pytest.mark.parametrize(("pictures", "count"), [(3, 0), (19, 0), (20, 2), (29, 2), (40, 4)])
def test_a_tenth_is_held_out_of_twenty_and_more(pictures: int, count: int) -> None:
    assert len(held_out(make_run(judgement={}), pictures)) == count
    assert held_out(make_run(), pictures) == frozenset(), "who is not judged trains on everything"


def test_which_are_held_out_is_the_seeds_choice() -> None:
    first, second = (held_out(make_run(judgement={}, training={"seed": seed}), 100) for seed in (1, 2))
    assert first == held_out(make_run(judgement={}, training={"seed": 1}), 100) != second


def test_pictures_that_are_held_out_are_never_trained_on(family: Family, tmp_path: Path) -> None:
    pictures = PictureSet.open(make_pictures(tmp_path, 20))
    run = make_run(judgement={}, training={"batchSize": 3})
    methods = make_methods(run.method, run.training.seed)
    samples = make_samples(run, family, methods, dataset_of(run, pictures), NONE, None)
    assert samples.samples_per_epoch == 18
    shown = {row.sum().item() for step in range(6) for row in samples.step(step)[0].moments.mean}
    plain = make_run(training={"batchSize": 4})
    everything = make_samples(plain, family, methods, dataset_of(plain, pictures), NONE, None)
    whole = [row.sum().item() for step in range(5) for row in everything.step(step)[0].moments.mean]
    assert len(set(whole)) == 20
    assert len(shown) == 18
    assert shown < set(whole)


def test_the_loss_is_that_of_the_model_at_fixed_levels_and_noise(family: Family, pictures: Path) -> None:
    run, found = make_run(judgement={}), PictureSet.open(pictures)
    figure = FixedNoiseLoss(run, family, dataset_of(run, found), NONE, wording_of(run.method))()["trainingLoss"]
    # by hand, for the second picture
    losses = []
    for picture, one in enumerate(found.pictures):
        shown = frame(one.height, one.width, (family.resolution, family.resolution), CENTRE, False)
        latents = family.encode_image(to_pixels(one.load(), shown)).mean * 0.5
        cond = family.encode_text(family.tokenize(["sks dog"]))
        for k, level in enumerate((62, 187, 312, 437, 562, 687, 812, 937)):
            noise = draw(run.training.seed, Purpose.VALIDATION, k, picture).noise(tuple(latents.shape))
            timestep = torch.tensor([level])
            with torch.no_grad():
                said = family.predict(family.add_noise(latents, noise, timestep), timestep, cond, torch.zeros(1, 6))
            losses.append(float((said - noise).square().mean()))
    assert figure.value == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert figure.n == 3


def test_sdxl_is_told_the_sizes_of_each_picture(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its two text encoders and its size conditioning."""
    family = load_family(build_tiny_sdxl(tmp_path / "sdxl"), CPU)
    run = make_run(judgement={})
    loss = FixedNoiseLoss(run, family, dataset_of(run, pictures), NONE, wording_of(run.method))
    figure = loss()["trainingLoss"]
    assert figure == loss()["trainingLoss"]
    assert 0.5 < figure.value < 2, "noise has a variance of 1, and random weights predict about nothing"
    told: list[torch.Tensor] = []
    predict = family.predict
    monkeypatch.setattr(family, "predict", lambda *given: told.append(given[3]) or predict(*given))
    loss()
    opened = PictureSet.open(pictures).pictures
    assert [sizes[0, :2].tolist() for sizes in told] == [[float(one.height), float(one.width)] for one in opened]


def test_the_same_model_has_the_same_loss_and_another_another(family: Family, pictures: Path, tmp_path: Path) -> None:
    run = make_run(prior=True, judgement={})
    classes = PictureSet.open(make_pictures(tmp_path / "classes", 2))
    loss = FixedNoiseLoss(run, family, dataset_of(run, pictures), classes, wording_of(run.method))
    before = loss()
    assert set(before) == {"trainingLoss", "classLoss"}
    assert before == loss()
    with torch.no_grad():
        family.parts["unet"].conv_in.bias += 0.1
    assert all(loss()[name].value != before[name].value for name in before)


def test_held_out_pictures_are_told_as_such(family: Family, tmp_path: Path) -> None:
    run = make_run(judgement={})
    dataset = dataset_of(run, make_pictures(tmp_path, 20))
    figures = FixedNoiseLoss(run, family, dataset, NONE, wording_of(run.method))()
    assert {name: figure.n for name, figure in figures.items()} == {"validationLoss": 2}
