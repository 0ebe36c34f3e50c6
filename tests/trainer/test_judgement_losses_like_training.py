"""The loss with fixed noise is looked at as the training looks: the same shapes, windows of text and precision."""

from pathlib import Path

import pytest
import torch
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.errors import Interrupted
from finetune_trainer.evaluation.fixed_noise import TIMESTEPS, FixedNoiseLoss
from finetune_trainer.evaluation.wording import wording_of
from finetune_trainer.families import Cond, Family, load_family
from finetune_trainer.methods import NoFiles, make_methods
from finetune_trainer.training.making_samples import make_samples
from support.samples import BUCKETS, make_shapes, with_texts
from support.training import dataset_of, make_run
from torch import Tensor

NONE = PictureSet.of([], "class pictures")


@pytest.fixture
def family(tiny_sd: Path) -> Family:
    return load_family(tiny_sd, torch.device("cpu"))


class Watched:
    """What the denoiser is asked: shape of the noisy latents, tokens of text, sizes, and what it answers in."""

    def __init__(self, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.tokens: list[int] = []
        self.sizes: list[tuple[float, ...]] = []
        self.types: list[torch.dtype] = []
        predict = family.predict

        def watched(noisy: Tensor, timesteps: Tensor, cond: Cond, sizes: Tensor) -> Tensor:
            answer = predict(noisy, timesteps, cond, sizes)
            self.shapes.append(tuple(noisy.shape))
            self.tokens.append(cond.embeddings.shape[1])
            self.sizes.append(tuple(sizes[0].tolist()))
            self.types.append(answer.dtype)
            return answer

        monkeypatch.setattr(family, "predict", watched)


def test_pictures_have_the_shapes_that_they_are_trained_in(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("dreamBooth", judgement={}, dataset={"resolution": 96, "buckets": BUCKETS})
    dataset = dataset_of(run, make_shapes(tmp_path))
    samples = make_samples(run, family, make_methods(run.method, 0), dataset, NONE, None)
    trained = {tuple(batch.sizes[0].tolist()) for step in range(5) for batch in samples.step(step)}
    loss = FixedNoiseLoss(run, family, dataset, NONE, wording_of(run.method))
    watched = Watched(family, monkeypatch)
    loss()
    assert set(watched.sizes) == trained
    assert len({shape[2:] for shape in watched.shapes}) == 3
    assert {shape[:2] for shape in watched.shapes} == {(TIMESTEPS, 4)}


def test_captions_are_read_in_as_many_windows_as_in_the_training(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window more changes what the denoiser says, and be it empty."""
    folder = with_texts(tmp_path, {"0.txt": "a" * 30, "1.txt": "short"})
    run = make_run("dreamBooth", judgement={}, dataset={"captions": {"source": "Sidecar"}})
    dataset = dataset_of(run, folder)
    samples = make_samples(run, family, make_methods(run.method, 0), dataset, NONE, None)
    (batch,) = samples.step(0)
    assert batch.cond is not None
    loss = FixedNoiseLoss(run, family, dataset, NONE, wording_of(run.method))
    watched = Watched(family, monkeypatch)
    loss()
    assert watched.tokens == [batch.cond.embeddings.shape[1]] * 2 == [48, 48]


def test_a_new_word_takes_its_room(family: Family, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the training nobody knows how long it is going to be."""
    method = {"textualInversion": {"tokens": [{"placeholder": "<t>", "vectors": 20}]}}
    run = make_run("textualInversion", method=method, judgement={})
    loss = FixedNoiseLoss(run, family, dataset_of(run, pictures), NONE, wording_of(run.method))
    watched = Watched(family, monkeypatch)
    loss()
    (word,) = make_methods(run.method, 0)
    word.install(family, NoFiles())
    loss()
    assert watched.tokens == [24] * 3 + [48] * 3


@pytest.mark.parametrize(("precision", "dtype"), [(None, torch.float32), ("bf16", torch.bfloat16)])
def test_the_denoiser_computes_as_in_the_training(
    precision: str | None, dtype: torch.dtype, family: Family, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("dreamBooth", judgement={}, training={"precision": precision})
    loss = FixedNoiseLoss(run, family, dataset_of(run, pictures), NONE, wording_of(run.method))
    watched = Watched(family, monkeypatch)
    assert 0.5 < loss()["trainingLoss"].value < 2, "noise has a variance of 1"
    assert set(watched.types) == {dtype}


def test_it_stops_between_two_pictures(family: Family, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, answers = make_run("dreamBooth", judgement={}), iter([False, False, True])
    dataset = dataset_of(run, pictures)
    loss = FixedNoiseLoss(run, family, dataset, NONE, wording_of(run.method), lambda: next(answers))
    watched = Watched(family, monkeypatch)
    with pytest.raises(Interrupted, match="goes on from its last checkpoint"):
        loss()
    assert len(watched.shapes) == 2
