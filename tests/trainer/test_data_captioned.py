"""Captions on their way into batches: each with its picture, whole or cut where it is said."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from finetune_api.methods import MethodSpec
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.data.samples import Samples
from finetune_trainer.data.text import MAX_KEPT, TextCache
from finetune_trainer.errors import DataError
from finetune_trainer.families import Family, load_family
from finetune_trainer.methods import NoFiles, make_methods
from finetune_trainer.training.making_samples import make_samples
from support.samples import samples_of, with_texts
from support.training import dataset_of, make_pictures, make_run

LONG = " ".join(["abcdefghij"] * 7)
"""Tokens are letters here, and a window holds 22 of them."""


@pytest.fixture(scope="module")
def family(tiny_sd: Path) -> Family:
    return load_family(tiny_sd, torch.device("cpu"))


def captions_seen(samples: Samples, family: Family, captions: list[str], windows: int, steps: int) -> Counter[str]:
    """Which caption each sample has, by its token ids and by what was made of them."""
    known = {tuple(family.tokenize([caption], windows).flatten().tolist()): caption for caption in captions}
    seen: Counter[str] = Counter()
    for step in range(steps):
        for batch in samples.step(step):
            for ids, embedding in zip(batch.token_ids, batch.cond.embeddings, strict=True):
                caption = known[tuple(ids.flatten().tolist())]
                encoded = family.encode_text(family.tokenize([caption], windows)).embeddings[0]
                torch.testing.assert_close(embedding, encoded, rtol=0, atol=1e-6)
                seen[caption] += 1
    return seen


def test_each_picture_is_trained_with_its_own_caption(family: Family, tmp_path: Path) -> None:
    folder = with_texts(tmp_path, {"0.txt": "red", "1.txt": "blue", "2.txt": "green"})
    samples = samples_of(make_run("dreamBooth", dataset={"captions": {"source": "Sidecar"}}), family, folder)
    assert captions_seen(samples, family, ["red", "blue", "green"], 1, 9) == {"red": 3, "blue": 3, "green": 3}
    # the picture that is 20 pixels wide is the first, and so on
    by_width = {20: "red", 24: "blue", 28: "green"}
    for step in range(3):
        (batch,) = samples.step(step)
        expected = family.tokenize([by_width[int(batch.sizes[0, 1])]])
        assert torch.equal(batch.token_ids, expected)


def test_dropout_and_shuffled_tags_reach_the_text_encoder(family: Family, tmp_path: Path) -> None:
    folder = with_texts(tmp_path, {"0.txt": "a,b,c"})
    spec = {"source": "Sidecar", "shuffleTags": True, "dropout": 0.3}
    samples = samples_of(make_run("dreamBooth", dataset={"captions": spec}), family, folder)
    seen = captions_seen(samples, family, ["a, b, c", "a, c, b", ""], 1, 60)
    assert set(seen) == {"a, b, c", "a, c, b", ""}
    assert 8 <= seen[""] <= 30


def test_repeats_count_in_the_order_and_in_epochs(family: Family, tmp_path: Path) -> None:
    for name, count in (("3_sks dog", 1), ("1_dog", 2)):
        make_pictures(tmp_path / name, count)
    run = make_run("dreamBooth", dataset={"captions": {"source": "Folder"}})
    samples = samples_of(run, family, tmp_path)
    assert samples.samples_per_epoch == 5
    assert captions_seen(samples, family, ["sks dog", "dog"], 1, 10) == {"sks dog": 6, "dog": 4}


@pytest.mark.parametrize(("max_tokens", "windows"), [(75, 1), (150, 2), (225, 3)])
def test_long_captions_are_read_in_windows_and_what_is_cut_is_said(
    max_tokens: int, windows: int, family: Family, tmp_path: Path
) -> None:
    folder = with_texts(tmp_path, {"0.txt": LONG, "1.txt": "short"})
    run = make_run("dreamBooth", dataset={"captions": {"source": "Sidecar", "maxTokens": max_tokens}})
    samples = samples_of(run, family, folder)
    (batch,) = samples.step(0)
    assert batch.token_ids.shape[-1] == batch.cond.embeddings.shape[1] == windows * 24
    assert samples.report.text_windows == windows
    (cut,) = samples.report.cut
    assert cut.caption == LONG
    assert len(cut.kept.split()) == windows * 2
    short = [one for one in dict(samples.report.rows())["Captions cut"].split("; ") if "short" in one]
    assert short == []


def test_only_as_many_windows_as_are_needed(family: Family, tmp_path: Path) -> None:
    folder = with_texts(tmp_path, {"0.txt": "a" * 30, "1.txt": "short"})
    samples = samples_of(make_run("dreamBooth", dataset={"captions": {"source": "Sidecar"}}), family, folder)
    assert samples.report.text_windows == 2
    assert samples.report.cut == ()


def test_the_text_cache_forgets_and_remembers_the_same(family: Family) -> None:
    cache = TextCache(family, 1, frozen=True)
    first = cache.get("first")[1]
    for number in range(MAX_KEPT):
        cache.get(f"prompt {number}")
    again = cache.get("first")[1]
    assert first is not None and again is not None
    assert first is not again
    assert torch.equal(first.embeddings, again.embeddings)
    assert cache.get("first")[1] is again


def test_a_word_that_no_caption_has_would_learn_nothing(tiny_sd: Path, tmp_path: Path) -> None:
    family = load_family(tiny_sd, torch.device("cpu"))
    run = make_run("lora", dataset={"captions": {"source": "Sidecar"}})
    lora = run.method.lora
    assert lora is not None
    tokens = [{"placeholder": "<cat>", "initializer": "c"}]
    method = MethodSpec.model_validate({"lora": lora.wire() | {"tokens": tokens, "prompt": "a <cat>"}})
    methods = make_methods(method, 0)
    for one in methods:
        one.install(family, NoFiles())
    folder = with_texts(tmp_path, {"0.txt": "a dog", "1.txt": "two dogs"})
    none = PictureSet.of([])
    with pytest.raises(DataError, match=r"dataset\.captions: no caption has <cat>.*write the word into the captions"):
        make_samples(run, family, methods, dataset_of(run, folder), none, None)
    (folder / "1.txt").write_text("a dog and a <cat>")
    assert make_samples(run, family, methods, dataset_of(run, folder), none, None).step(0)
