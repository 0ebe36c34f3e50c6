"""The report on a run's data: what stands out in it, and what is counted."""

import json
from pathlib import Path

from finetune_trainer.data.held_out import held_out
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.families import Family
from PIL import Image
from support.samples import bucketed, samples_of
from support.training import Memory, make_pictures, make_run, train_once


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


def test_what_is_held_out_is_not_counted_as_trained(family: Family, tmp_path: Path) -> None:
    """Small pictures with captions of their own, nowhere transparent but one."""
    make_pictures(tmp_path, 20)
    for number in range(20):
        image = Image.open(tmp_path / f"{number}.png").convert("RGBA")
        image.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"toy {'abcdefghijklmnopqrst'[number]}")
    run = make_run("dreamBooth", judgement={}, dataset={"resolution": 64, "captions": {"source": "Sidecar"}})
    held = sorted(held_out(run, 20))
    names = [PictureSet.open(tmp_path).pictures[number].path.name for number in held]
    assert len(names) == 2
    spared = next(number for number in range(20) if f"{number}.png" not in names)
    image = Image.open(tmp_path / f"{spared}.png")
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / f"{spared}.png")
    # one of those that are held out is the copy of one that is trained: that is worth knowing
    (tmp_path / names[0]).write_bytes((tmp_path / f"{spared}.png").read_bytes())

    masked = run.model_copy(update={"dataset": run.dataset.model_copy(update={"masks": "AlphaChannel"})})
    report = samples_of(masked, family, tmp_path).report
    assert report.held_out == tuple(names)
    assert (report.pictures, report.samples_per_epoch, report.captions) == (18, 18, 18)
    assert [(bucket.pictures, bucket.samples) for bucket in report.buckets] == [(18, 18)]
    assert (len(report.enlarged), len(report.opaque)) == (18, 17)
    assert not set(names) & {*report.enlarged, *report.opaque, *report.unseen}
    assert any({names[0], f"{spared}.png"} <= set(group) for group in report.alike)
    assert dict(report.rows())["Pictures"] == "18; 18 samples in a pass"
    assert f"Held out of the training, for the validation loss: {', '.join(names)}" in report.lines()
    everything = masked.model_copy(update={"judgement": None})
    report = samples_of(everything, family, tmp_path).report
    assert (report.held_out, report.pictures) == ((), 20)
    assert not any(line.startswith("Held out") for line in report.lines())
