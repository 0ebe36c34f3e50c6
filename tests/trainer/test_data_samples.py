"""From a folder to batches: shapes, captions, sizes and masks arrive where they belong, whatever is cached, wherever
a training goes on, and however many processes share it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_api import TrainingRun
from finetune_api.methods import MethodSpec
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.data.samples import Batch, Samples
from finetune_trainer.data.text import MAX_KEPT, TextCache
from finetune_trainer.errors import DataError
from finetune_trainer.families import Family, load_family
from finetune_trainer.group.team import ALONE, Alone, Team
from finetune_trainer.methods import NoFiles, make_methods
from finetune_trainer.training.making_samples import make_samples
from PIL import Image
from support.training import Memory, make_pictures, make_run, train_once

BUCKETS = {"minResolution": 64, "maxResolution": 128, "step": 16}
ASPECTS = {"wide": (160, 80), "wider": (150, 70), "tall": (80, 160), "square": (96, 100), "small": (30, 30)}


class Seat(Alone):
    """One of several processes, as far as samples know."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.fixture(scope="module")
def family(tiny_sd: Path) -> Family:
    return load_family(tiny_sd, torch.device("cpu"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several aspects."""
    folder = tmp_path_factory.mktemp("shapes")
    for number, (name, size) in enumerate(ASPECTS.items()):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


def samples_of(
    run: TrainingRun,
    family: Family,
    folder: Path,
    cache: Path | None = None,
    team: Team = ALONE,
    classes: Path | None = None,
) -> Samples:
    class_set = PictureSet.open(classes) if classes is not None else PictureSet.of([])
    methods = make_methods(run.method, 0)
    return make_samples(run, family, methods, PictureSet.open(folder), class_set, cache, team)


def bucketed(batch: int = 2, accumulation: int = 2, **dataset: object) -> TrainingRun:
    training = {"batchSize": batch, "gradientAccumulationSteps": accumulation}
    return make_run("dreamBooth", training=training, dataset={"resolution": 96, "buckets": BUCKETS, **dataset})


def same(one: Batch, other: Batch) -> bool:
    pairs = [
        (one.moments.mean, other.moments.mean),
        (one.moments.logvar, other.moments.logvar),
        (one.noise, other.noise),
        (one.sizes, other.sizes),
        (one.token_ids, other.token_ids),
        (one.timesteps, other.timesteps),
    ]
    return one.seed == other.seed and all(torch.equal(a, b) for a, b in pairs)


def test_each_batch_is_of_one_bucket_and_whole(family: Family, shapes: Path) -> None:
    samples = samples_of(bucketed(flip=True), family, shapes)
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(10):
        for batch in samples.step(step):
            height, width = (side * 2 for side in batch.moments.mean.shape[2:])
            assert batch.moments.mean.shape[0] == 2
            assert batch.sizes[:, 4:].tolist() == [[height, width]] * 2
            assert height * width <= 96**2
            seen[height, width] += 2
    assert {(bucket.height, bucket.width) for bucket in samples.report.buckets} == set(seen)
    # 40 samples are 8 passes over 5 pictures
    for bucket in samples.report.buckets:
        assert abs(seen[bucket.height, bucket.width] - 8 * bucket.pictures) < 2


def test_processes_share_the_micro_batches_of_one(family: Family, shapes: Path) -> None:
    alone = samples_of(bucketed(2, 4), family, shapes)
    ranks = [samples_of(bucketed(2, 2), family, shapes, team=Seat(rank, 2)) for rank in range(2)]
    for step in (0, 5):
        shared = [rank.step(step) for rank in ranks]
        for number, batch in enumerate(alone.step(step)):
            assert same(batch, shared[number % 2][number // 2])


def test_a_step_is_the_same_whenever_it_is_asked_for(family: Family, shapes: Path) -> None:
    run = bucketed(captions={"dropout": 0.4})
    samples = samples_of(run, family, shapes)
    forwards = [samples.step(step) for step in range(4)]
    for step in (3, 1):
        again = samples_of(run, family, shapes).step(step)
        assert all(same(one, other) for one, other in zip(forwards[step], again, strict=True))


@pytest.mark.parametrize(
    "dataset",
    [
        {"flip": True},
        {"flip": True, "crop": "Random", "cropsPerPicture": 3},
        {"flip": True, "resolution": 96, "buckets": BUCKETS},
    ],
    ids=["flip", "crops", "buckets"],
)
def test_with_and_without_a_cache_the_same_views(
    dataset: dict[str, object], family: Family, shapes: Path, tmp_path: Path
) -> None:
    run = make_run("dreamBooth", True, training={"batchSize": 3}, dataset=dataset)
    classes = make_pictures(tmp_path / "classes", 4)
    plain = samples_of(run, family, shapes, None, classes=classes)
    fills, reads = (samples_of(run, family, shapes, tmp_path, classes=classes) for _ in range(2))
    batches = [[samples.step(step)[0] for step in range(6)] for samples in (plain, fills, reads)]
    for without, first, second in zip(*batches, strict=True):
        assert same(without, first)
        assert same(without, second)
    files = list((tmp_path / "latents").glob("*.safetensors"))
    views = {bytes(mean.numpy()) for batch in batches[0] for mean in batch.moments.mean}
    assert len(files) == len(views)


def test_mirrored_and_other_crops_are_other_views(family: Family, shapes: Path) -> None:
    run = make_run("dreamBooth", dataset={"flip": True, "crop": "Random", "cropsPerPicture": 3})
    samples = samples_of(run, family, shapes)
    assert samples.samples_per_epoch == 15
    views: dict[int, set[bytes]] = {}
    for step in range(120):
        for batch in samples.step(step):
            views.setdefault(int(batch.sizes[0, 0]), set()).add(bytes(batch.moments.mean.numpy()))
    # by their heights: the small one is square and has a single crop, with its mirror image
    assert {height: len(views[height]) for height in (30, 70, 80, 160)} == {30: 2, 70: 6, 80: 6, 160: 6}


def test_class_pictures_take_the_shape_of_the_users(family: Family, shapes: Path, tmp_path: Path) -> None:
    run = make_run("dreamBooth", True, training={"batchSize": 2}, dataset={"resolution": 96, "buckets": BUCKETS})
    samples = samples_of(run, family, shapes, classes=make_pictures(tmp_path, 3))
    shapes_seen = set()
    for step in range(8):
        (batch,) = samples.step(step)
        assert batch.moments.mean.shape[0] == 4
        assert len(set(map(tuple, batch.sizes[:, 4:].tolist()))) == 1
        shapes_seen.add(tuple(batch.moments.mean.shape[2:]))
    assert len(shapes_seen) > 1


def test_square_crops_are_told_too(family: Family, shapes: Path) -> None:
    samples = samples_of(make_run("dreamBooth"), family, shapes)
    told = {tuple(batch.sizes[0].tolist()) for step in range(5) for batch in samples.step(step)}
    # height, width, top, left in the picture scaled to a short side of 16, target
    assert told == {
        (80, 160, 0, 8, 16, 16),
        (70, 150, 0, 9, 16, 16),
        (160, 80, 8, 0, 16, 16),
        (100, 96, 0, 0, 16, 16),
        (30, 30, 0, 0, 16, 16),
    }


def with_texts(folder: Path, texts: dict[str, str]) -> Path:
    make_pictures(folder, len(texts))
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


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


# tokens are letters here, and a window holds 22 of them
LONG = " ".join(["abcdefghij"] * 7)


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


def test_masks_come_with_the_view_and_class_pictures_have_white_ones(
    family: Family, shapes: Path, tmp_path: Path
) -> None:
    for name, size in ASPECTS.items():
        image = Image.open(shapes / f"{name}.png")
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        image.putalpha(mask)
        image.save(tmp_path / f"{name}.png")
    run = make_run(
        "dreamBooth",
        True,
        training={"batchSize": 2},
        dataset={"resolution": 96, "buckets": BUCKETS, "masks": "AlphaChannel", "flip": True},
    )
    samples = samples_of(run, family, tmp_path, classes=shapes)
    sides = Counter()
    for step in range(10):
        (batch,) = samples.step(step)
        assert batch.masks is not None
        assert batch.masks.shape == (4, 1, *batch.moments.mean.shape[2:])
        assert batch.masks[2:].min() == 1
        for mask in batch.masks[:2, 0]:
            left, right = mask[:, 0].mean().item(), mask[:, -1].mean().item()
            assert {left, right} == {0, 1}
            sides["left" if left else "right"] += 1
    assert min(sides["left"], sides["right"]) > 3, "mirrored with the picture"
    assert samples_of(make_run("dreamBooth"), family, tmp_path).step(0)[0].masks is None


def test_the_report_says_what_stands_out(family: Family, shapes: Path, tmp_path: Path) -> None:
    for path in shapes.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    Image.open(shapes / "wide.png").resize((180, 90)).save(tmp_path / "wide again.jpg", quality=90)
    (tmp_path / "phone.HEIC").touch()
    report = samples_of(bucketed(), family, tmp_path).report
    assert (report.pictures, report.samples_per_epoch, report.captions, report.class_pictures) == (6, 6, 1, 0)
    assert report.enlarged == ("small.png",)
    assert report.alike == (("wide again.jpg", "wide.png"),)
    assert report.passed_over == {".heic": 1}
    assert [(b.height, b.width, b.pictures) for b in report.buckets] == [(64, 128, 3), (96, 96, 2), (128, 64, 1)]
    rows = dict(report.rows())
    assert rows["Pictures by shape (width × height)"] == "128 × 64: 3, 96 × 96: 2, 64 × 128: 1"
    assert rows["Look alike"] == "wide again.jpg and wide.png"
    assert "Captions cut" not in rows
    assert json.loads(report.to_json())["enlarged"] == ["small.png"]


def test_the_report_names_crops_that_miss_their_mask_and_pictures_without_one(family: Family, tmp_path: Path) -> None:
    for name, (left, right) in {"edge": (0, 4), "middle": (30, 50), "whole": (0, 80)}.items():
        image, alpha = Image.new("RGB", (80, 20), "red"), Image.new("L", (80, 20))
        alpha.paste(255, (left, 0, right, 20))
        image.putalpha(alpha)
        image.save(tmp_path / f"{name}.png")
    report = samples_of(make_run("dreamBooth", dataset={"masks": "AlphaChannel"}), family, tmp_path).report
    assert report.unseen == ("edge.png",)
    assert report.opaque == ("whole.png",)


def test_a_run_tells_the_report_and_carries_it(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    listener = Memory()
    run = make_run("lora", training={"steps": 1})
    _, outcome = train_once(run, tiny_sd, pictures, tmp_path, listener=listener)
    assert outcome.data.pictures == 3
    assert set(outcome.data.lines()) <= set(listener.messages)


def test_a_training_with_everything_resumes_to_the_same_losses(tiny_sd: Path, shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in shapes.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / path.name).with_suffix(".txt").write_text(f"sks, {path.stem}, dog, {'x' * 30}")
        Image.new("L", Image.open(path).size, 200).save(folder / f"{path.stem}-masklabel.png")
    run = make_run(
        "lora",
        True,
        training={
            "steps": 4,
            "batchSize": 2,
            "learningRate": 0.01,
            "loss": {"weighting": "MinSnr", "noiseOffset": 0.05},
        },
        dataset={
            "resolution": 72,
            "buckets": BUCKETS | {"step": 8},
            "flip": True,
            "masks": "Sidecar",
            "captions": {"source": "Sidecar", "shuffleTags": True, "dropout": 0.2},
        },
        checkpoints={"everySteps": 2},
    )
    _, whole = train_once(run, tiny_sd, folder, tmp_path / "whole")
    assert len(whole.data.buckets) == 3
    left = iter(range(2))
    _, first = train_once(run, tiny_sd, folder, tmp_path / "parts", lambda: next(left, None) is None)
    assert first.interrupted
    _, second = train_once(run, tiny_sd, folder, tmp_path / "parts")
    assert second.resumed_from_step == first.step == 2
    assert second.losses == whole.losses
    # another caption is another training: the checkpoint belongs to the old one
    (folder / "wide.txt").write_text("sks, narrow")
    listener = Memory()
    _, changed = train_once(run, tiny_sd, folder, tmp_path / "parts", lambda: True, listener)
    assert changed.resumed_from_step is None
    assert any("captions changed" in message for message in listener.messages)


def test_what_is_missing_is_said_before_anything_is_encoded(family: Family, shapes: Path) -> None:
    for source, message in (
        ("Sidecar", "without a caption"),
        ("Jsonl", "no metadata.jsonl"),
        ("Folder", "in no folder"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            samples_of(make_run("dreamBooth", dataset={"captions": {"source": source}}), family, shapes)
        assert caught.value.exit_code == 65


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
        make_samples(run, family, methods, PictureSet.open(folder), none, None)
    (folder / "1.txt").write_text("a dog and a <cat>")
    assert make_samples(run, family, methods, PictureSet.open(folder), none, None).step(0)
