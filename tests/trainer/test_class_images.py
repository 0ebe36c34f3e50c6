"""Class pictures: picture i depends on the key and on i alone, and nothing is drawn twice."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_api.methods import PriorPreservationSpec
from finetune_trainer.data.class_images import IN_USE_SECONDS, class_images_key, ensure_class_images
from finetune_trainer.errors import Interrupted
from finetune_trainer.families import Family, load_family
from PIL import Image
from support.tiny_sd import build_tiny_sd
from support.training import Memory


@pytest.fixture(scope="module")
def family(tiny_sd: Path) -> Family:
    return load_family(tiny_sd, torch.device("cpu"))


def prior(prompt: str = "dog", **changes: object) -> PriorPreservationSpec:
    settings = {"count": 3, "inferenceSteps": 2, "guidanceScale": 3.0, "batchSize": 2} | changes
    return PriorPreservationSpec.model_validate({"classPrompt": prompt, "classImages": settings})


def make(family: Family, spec: PriorPreservationSpec, folder: Path, seed: int = 0) -> list[Path]:
    return ensure_class_images(family, spec, seed, 16, folder, Memory(), lambda: False)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), np.int16)


def test_a_hundred_are_the_first_of_two_hundred(family: Family, tmp_path: Path) -> None:
    few = make(family, prior(count=3), tmp_path / "few")
    many = make(family, prior(count=6), tmp_path / "many")
    assert few[0].parent.name == many[0].parent.name
    for one, other in zip(few, many, strict=False):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1  # the last batch of `few` was a smaller one
    assert len({path.read_bytes() for path in many}) == 6


@pytest.mark.parametrize("batch", [1, 3, 4, 7])
def test_the_batch_size_changes_nothing_but_rounding(batch: int, family: Family, tmp_path: Path) -> None:
    alone = make(family, prior(count=5, batchSize=1), tmp_path / "alone")
    together = make(family, prior(count=5, batchSize=batch), tmp_path / "together")
    for one, other in zip(alone, together, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1


def test_a_stopped_generation_goes_on(family: Family, tmp_path: Path) -> None:
    spec, calls = prior(count=5), iter([False, False, True])
    with pytest.raises(Interrupted, match="stopped after 4 of 5 class pictures; they are kept"):
        ensure_class_images(family, spec, 0, 16, tmp_path, Memory(), lambda: next(calls))
    (folder,) = (tmp_path / "class-images").iterdir()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert sorted(kept) == ["00000.png", "00001.png", "00002.png", "00003.png"]
    (folder / "00001.png").unlink()  # a hole is filled
    listener = Memory()
    paths = ensure_class_images(family, spec, 0, 16, tmp_path, listener, lambda: False)
    assert [path.name for path in paths] == [f"{index:05d}.png" for index in range(5)]
    assert all(path.is_file() for path in paths)
    untouched = ("00000.png", "00002.png", "00003.png")
    assert all((folder / name).stat().st_mtime_ns == kept[name] for name in untouched)
    assert listener.done == [(3, 5), (5, 5)]
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-20], lambda data: b"", lambda data: data[:60] + b"?" + data[61:]]
)
def test_a_damaged_one_is_drawn_again_and_no_other(
    spoil: Callable[[bytes], bytes], family: Family, tmp_path: Path
) -> None:
    paths = make(family, prior(count=3, batchSize=1), tmp_path)
    before = [path.read_bytes() for path in paths]
    kept = [path.stat().st_mtime_ns for path in paths]
    paths[1].write_bytes(spoil(before[1]))
    again = make(family, prior(count=3, batchSize=1), tmp_path)
    assert [path.read_bytes() for path in again] == before
    assert [again[index].stat().st_mtime_ns for index in (0, 2)] == [kept[0], kept[2]]


def test_what_is_part_of_the_key(family: Family, tmp_path: Path) -> None:
    """Whatever changes the pictures is in it; how many and how many at once is not."""
    base = class_images_key(family, prior(), 0, 16)
    assert class_images_key(family, prior(count=9, batchSize=7), 0, 16) == base
    other_model = load_family(build_tiny_sd(tmp_path / "model", seed=1), torch.device("cpu"))
    others = [
        class_images_key(other_model, prior(), 0, 16),
        class_images_key(family, prior("cat"), 0, 16),
        class_images_key(family, prior(negativePrompt="blur"), 0, 16),
        class_images_key(family, prior(inferenceSteps=3), 0, 16),
        class_images_key(family, prior(guidanceScale=4.0), 0, 16),
        class_images_key(family, prior(), 1, 16),
        class_images_key(family, prior(), 0, 32),
    ]
    assert all(other != base for other in others)
    assert set(base) == {
        "generator",
        "model",
        "prompt",
        "negativePrompt",
        "sampler",
        "inferenceSteps",
        "guidanceScale",
        "resolution",
        "seed",
    }


def test_a_full_disk_is_not_passed_over(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing would be missed at the end of the training."""

    def full(path: Path, write: object) -> None:
        raise OSError(28, "No space left on device")

    drawn: list[int] = []

    def drawing(prompts: list[str], *rest: object) -> list[Image.Image]:
        drawn.append(len(prompts))
        return [Image.new("RGB", (16, 16))] * len(prompts)

    make(family, prior(count=1), tmp_path)
    monkeypatch.setattr("finetune_trainer.data.class_images._store", full)
    monkeypatch.setattr(family, "draw", drawing)
    with pytest.raises(OSError, match="No space left"):
        make(family, prior(count=9), tmp_path)
    assert sum(drawn) <= 4, "it is known with the next batch"


def test_the_pictures_of_a_key_go_together_and_not_while_they_are_needed(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.data.disk_cache.bound", lambda disk: 1)
    (first, *_), (second, *_) = make(family, prior("dog"), tmp_path), make(family, prior("cat"), tmp_path)
    assert first.is_file(), "used a moment ago"
    then = first.stat().st_mtime - IN_USE_SECONDS - 60
    os.utime(first.parent, (then, then))
    make(family, prior("cat"), tmp_path)
    assert not first.parent.exists()
    assert len(list(second.parent.glob("*.png"))) == 3
    make(family, prior("dog"), tmp_path)
    assert first.is_file()
    os.utime(first.parent, (then, then))
    make(family, prior("dog"), tmp_path)
    assert first.is_file(), "using them counts, and not only drawing them"
