"""From a folder to batches: shapes, captions, sizes and masks arrive where they belong, whatever is cached, wherever
a training goes on, and however many processes share it."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from finetune_trainer.data.samples import Batch
from finetune_trainer.errors import DataError
from finetune_trainer.families import Family
from PIL import Image
from support.samples import ASPECTS, BUCKETS, Seat, bucketed, samples_of
from support.training import Memory, make_pictures, make_run, train_once


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
