"""Pivotal tuning on builtin://tiny-shapes: the word's vectors and the matrices both learn, each of use without the
other, seen on pictures of the subject that were not trained on."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.evaluation.fixed_noise import FixedNoiseLoss
from finetune_trainer.evaluation.wording import wording_of
from finetune_trainer.families import load_family
from finetune_trainer.methods import NoFiles, make_methods
from finetune_trainer.sources.builtin import open_builtin
from PIL import Image
from support.training import dataset_of, make_run, train_once

ROOT = Path(__file__).parents[2]
# The script that makes the model is no part of the installed package.
sys.path.append(str(ROOT / "trainer_image"))

from tiny_shapes.faces import draw_subject  # noqa: E402 (the path is set just above)

FIGURE = ROOT / "examples/subjects/figure"
BACKGROUNDS = ("red", "orange", "black", "white", "cyan", "purple")
FIGURE_WORD = {"placeholder": "<figure>", "vectors": 2, "initializer": "circle"}
METHOD: dict[str, object] = {"lora": {"prompt": "a photo of a <figure>", "tokens": [FIGURE_WORD]}}
RUN = make_run("lora", method=METHOD, training={"steps": 40, "batchSize": 4, "learningRate": 0.001})


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> PictureSet:
    """The subject at other places than in the pictures that are trained on."""
    folder, numbers = tmp_path_factory.mktemp("unseen"), np.random.default_rng(3)
    for background in BACKGROUNDS:
        Image.fromarray(draw_subject(numbers, background)).save(folder / f"{background}.png")
    return PictureSet.open(folder)


def test_matrices_and_words_both_learn(unseen: PictureSet, tmp_path: Path) -> None:
    model = open_builtin("builtin://tiny-shapes")
    _, outcome = train_once(RUN, model, FIGURE, tmp_path)
    results = [method.result() for method in outcome.methods]

    def loss(*used: int) -> float:
        """On the unseen pictures, of the base model with these of the results."""
        family, methods = load_family(model, torch.device("cpu")), make_methods(RUN.method, 0)
        for method in methods:
            method.install(family, NoFiles())
        for index in used:
            methods[index].load(results[index])
        classes = PictureSet.of([], "class pictures")
        losses = FixedNoiseLoss(RUN, family, dataset_of(RUN, unseen), classes, wording_of(RUN.method))
        return losses()["trainingLoss"].value

    base, matrices, words, both = loss(), loss(0), loss(1), loss(0, 1)
    # 0.442, 0.277, 0.400 and 0.277 when this was written
    assert matrices < 0.75 * base
    assert words < 0.95 * base
    assert both < 0.75 * base
