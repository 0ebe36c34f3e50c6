"""Pictures and prompts are encoded once: before the first step, and never again where a cache has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from finetune_trainer.data.disk_cache import DiskCache
from finetune_trainer.data.encoding import encode_views
from finetune_trainer.data.text import TextCache
from finetune_trainer.errors import DataError, Interrupted
from finetune_trainer.families import Family, load_family
from support.samples import BUCKETS, Seat, bucketed, samples_of
from support.tiny_sd import build_tiny_sd
from support.training import Memory, make_pictures, make_run, train_once


@contextmanager
def counted(family: Family, name: str) -> Iterator[list[int]]:
    """How often a network is asked, by batch size."""
    calls: list[int] = []
    whole: Callable[[torch.Tensor], object] = getattr(family, name)

    def watched(inputs: torch.Tensor) -> object:
        calls.append(len(inputs))
        return whole(inputs)

    setattr(family, name, watched)
    yield calls
    delattr(family, name)


@pytest.mark.parametrize(
    ("dataset", "rank"),
    [
        ({}, 0),
        ({"flip": True, "crop": "Random", "cropsPerPicture": 3}, 0),
        ({"flip": True, "resolution": 96, "buckets": BUCKETS}, 0),
        ({"flip": True, "resolution": 96, "buckets": BUCKETS}, 1),
    ],
    ids=["plain", "crops", "buckets", "second of two processes"],
)
def test_what_steps_show_is_encoded_before_them_and_nothing_else(
    dataset: dict[str, object], rank: int, family: Family, shapes: Path, tmp_path: Path
) -> None:
    steps = 5
    run = make_run("dreamBooth", True, training={"batchSize": 2}, dataset=dataset)
    classes, listener = make_pictures(tmp_path / "classes", 4), Memory()
    samples, plain = (samples_of(run, family, shapes, None, Seat(rank, rank + 1), classes) for _ in range(2))
    with counted(family, "encode_image") as calls:
        encode_views(samples, steps, listener, lambda: False)
        assert calls == [1] * len(calls), "one at a time: the same bits whatever is encoded with it"
        before = len(calls)
        ready = [samples.step(step) for step in range(steps)]
        assert len(calls) == before, "the VAE is not needed any more"
        expected = [plain.step(step) for step in range(steps)]
        assert len(calls) == 2 * before, "nothing was encoded that is not shown"
    assert listener.done == [(number, before) for number in range(1, before + 1)]
    for one, other in zip(ready, expected, strict=True):
        assert torch.equal(one[0].moments.mean, other[0].moments.mean)
        assert torch.equal(one[0].noise, other[0].noise)


def test_of_a_long_training_each_view_is_listed_once(family: Family, shapes: Path, tmp_path: Path) -> None:
    run = make_run(
        "dreamBooth", True, training={"batchSize": 2}, dataset={"flip": True, "resolution": 96, "buckets": BUCKETS}
    )
    samples = samples_of(run, family, shapes, classes=make_pictures(tmp_path, 4))
    views = samples.views(10**9)
    assert len(set(views)) == len(views)
    own = {key for latents, key in views if latents is views[0][0]}
    assert len(own) == 5 * 2, "each in its bucket, and mirrored"
    shown = {shape for _, shape, _ in own}
    assert {key for latents, key in views if latents is not views[0][0]} == {
        (item, shape, False) for item in range(4) for shape in shown
    }


def test_stopped_while_encoding_it_keeps_what_it_has(family: Family, shapes: Path, tmp_path: Path) -> None:
    run, looks = bucketed(flip=True), iter(range(3))
    samples = samples_of(run, family, shapes, tmp_path)
    with pytest.raises(Interrupted, match=r"^stopped after 3 of \d+ views encoded; they are kept"):
        encode_views(samples, 9, Memory(), lambda: next(looks, None) is None)
    assert len(list((tmp_path / "latents").iterdir())) == 3
    again = samples_of(run, family, shapes, tmp_path)
    with counted(family, "encode_image") as calls:
        encode_views(again, 9, Memory(), lambda: False)
    assert len(calls) == len(again.views(9)) - 3


def test_a_picture_that_is_gone_is_named(family: Family, shapes: Path, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "pictures", 3)
    samples = samples_of(make_run("dreamBooth"), family, folder)
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png is not a PNG"):
        encode_views(samples, 9, Memory(), lambda: False)


def test_a_training_encodes_before_it_begins(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    order: list[str] = []

    class Ordered(Memory):
        def work(self, done: int, total: int, what: str) -> None:
            order.append(what)

        def stage(self, name: str) -> None:
            super().stage(name)
            order.append(name)

    train_once(make_run(), tiny_sd, pictures, tmp_path, listener=Ordered())
    assert order == ["views encoded"] * 3 + ["Training"]


# ---- text ----


def test_a_prompt_is_encoded_once_for_all_runs(family: Family, tmp_path: Path) -> None:
    fills, reads = (TextCache(family, 1, True, DiskCache(tmp_path)) for _ in range(2))
    with counted(family, "encode_text") as calls:
        first, second = (cache.get("a dog") for cache in (fills, reads))
        fills.get("a dog")
        assert calls == [1]
        fills.get("a cat")
        assert calls == [1, 1]
    assert torch.equal(first[0], second[0])
    assert first[1] is not None
    assert second[1] is not None
    assert torch.equal(first[1].embeddings, second[1].embeddings)
    assert torch.equal(first[1].embeddings, family.encode_text(first[0]).embeddings)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_the_key_of_a_text_holds(family: Family, tmp_path: Path) -> None:
    """Tokens, clip skip, and the encoder; not the prompt."""
    other = load_family(build_tiny_sd(tmp_path / "model", seed=1), torch.device("cpu"))
    folder = tmp_path / "text"
    caches = {
        "as it is": TextCache(family, 1, True, DiskCache(folder)),
        "another clip skip": TextCache(family, 1, True, DiskCache(folder), clip_skip=1),
        "more windows": TextCache(family, 2, True, DiskCache(folder)),
        "another encoder": TextCache(other, 1, True, DiskCache(folder)),
    }
    for number, cache in enumerate(caches.values(), 1):
        cache.get("a dog")
        assert len(list(folder.iterdir())) == number
    TextCache(family, 1, True, DiskCache(folder)).get("A  dog")
    assert len(list(folder.iterdir())) == 4, "the same tokens"
    ids, cond = TextCache(family, 1, False, DiskCache(folder)).get("a bird")
    assert cond is None
    assert ids.shape[0] == 1
    assert len(list(folder.iterdir())) == 4, "an encoder that is trained has nothing to keep"


def test_a_training_is_the_same_with_caches_that_another_filled(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    run = make_run("lora", True, dataset={"flip": True})
    _, first = train_once(run, tiny_sd, pictures, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "cache").rename(tmp_path / "b" / "cache")
    assert len(list((tmp_path / "b" / "cache" / "text").iterdir())) == 2, "the subject's and the class's"
    _, second = train_once(run, tiny_sd, pictures, tmp_path / "b")
    assert second.losses == first.losses


def test_latents_of_one_machine_are_not_taken_for_anothers(family: Family, shapes: Path, tmp_path: Path) -> None:
    """A GPU rounds in another way than a CPU: what a run computes must not depend on who filled the cache."""
    samples = samples_of(make_run("dreamBooth"), family, shapes, tmp_path)
    latents, key = samples.views(1)[0]
    latents.get(*key)
    assert isinstance(latents.find(key), type(latents.get(*key).moments))
    family.device = torch.device("cuda")
    try:
        assert isinstance(latents.find(key), torch.Tensor), "pixels, to be encoded there"
    finally:
        family.device = torch.device("cpu")
