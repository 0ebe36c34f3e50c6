"""Data that cannot be used ends `finetune run` with 65, and settings that cannot with 78; the message says what to
change, and no traceback is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_trainer.cli import app
from PIL import Image
from support.training import make_pictures
from typer.testing import CliRunner


def truncated(folder: Path) -> None:
    path = folder / "1.png"
    path.write_bytes(path.read_bytes()[:200])


def enormous(folder: Path) -> None:
    """100 megapixels; a few kB, for it is all white."""
    Image.new("1", (10_000, 10_000), 1).save(folder / "huge.png")


def of_a_broken_camera(folder: Path) -> None:
    """EXIF that ends within its header."""
    Image.open(folder / "1.png").save(folder / "1.webp", exif=b"Exif\0\0II*\0")


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def of_a_phone(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        path.rename(path.with_suffix(".heic"))


def black_mask(folder: Path) -> None:
    for path in sorted(folder.glob("*.png")):
        Image.new("L", Image.open(path).size, 0 if path.stem == "2" else 255).save(
            folder / f"{path.stem}-masklabel.png"
        )


def broken_table(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n{"file_name": "1.png", "te\n')


def nothing(folder: Path) -> None:
    """The pictures are well; the settings are not."""


SIDECAR = {"captions": {"source": "Sidecar"}}

# what is done to the folder of 0.png, 1.png, 2.png; dataset; exit code; words of the message
REFUSED: list[tuple[Callable[[Path], object], dict[str, object], int, tuple[str, ...]]] = [
    (truncated, {}, 65, ("dataset.uri: 1.png is damaged", "replace or remove the file")),
    (enormous, {}, 65, ("huge.png has 10000 × 10000 pixels", "not below 100 megapixels; scale it down")),
    (of_a_broken_camera, {}, 65, ("dataset.uri: 1.webp is damaged", "replace or remove the file")),
    (emptied, {}, 65, ("no pictures found", "the folder has nothing", "Check the path")),
    (of_a_phone, {}, 65, ("no pictures found", "3 .heic", "convert the pictures")),
    (lambda folder: (folder / "0.txt").write_text("a"), SIDECAR, 65, ("1.png, 2.png without a caption", "write one")),
    (lambda folder: (folder / "9.txt").write_text("a"), SIDECAR, 65, ("9.txt without a picture", "remove it")),
    (broken_table, {"captions": {"source": "Jsonl"}}, 65, ("metadata.jsonl, line 2 is not JSON", "one object a line")),
    (nothing, {"captions": {"source": "Folder"}}, 65, ("in no folder that gives repeats", "20_sks dog")),
    (black_mask, {"masks": "Sidecar"}, 65, ("the mask of 2.png is black", "paint what counts white")),
    (
        nothing,
        {"resolution": 64, "buckets": {"minResolution": 512, "maxResolution": 1024}},
        78,
        ("dataset.buckets: no picture", "lower minResolution"),
    ),
]


@pytest.mark.parametrize(("spoil", "dataset", "code", "words"), REFUSED)
def test_refused_with_words_that_help(
    spoil: Callable[[Path], object],
    dataset: dict[str, object],
    code: int,
    words: tuple[str, ...],
    tiny_sd: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spoil(make_pictures(tmp_path / "pictures"))
    spec = {
        "baseModel": {"uri": f"file://{tiny_sd}"},
        "method": {"lora": {"prompt": "sks dog", "rank": 2}},
        "dataset": {"uri": "file://./pictures", **dataset},
        "training": {"steps": 1},
        "validation": {"imagesPerPrompt": 1, "inferenceSteps": 1},
        "output": {"uri": "file://./results"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "dog"}}
    (tmp_path / "job.yaml").write_text(json.dumps({**head, "spec": spec}))
    result = CliRunner().invoke(app, ["run", "job.yaml"])
    said = " ".join(result.output.split())
    assert result.exit_code == code, said
    assert [word for word in words if word not in said] == [], said
    assert "Traceback" not in said
