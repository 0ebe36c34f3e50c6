"""`finetune generate`: pictures by the hundred, drawn once, and by anyone again."""

from __future__ import annotations

import hashlib
import io
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from finetune_trainer.cli import app
from finetune_trainer.publish.file_store import FileStore
from PIL import Image
from support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from typer.testing import CliRunner

QUICK = ("--steps", "2", "--guidance", "3")


@pytest.fixture(autouse=True)
def a_machine_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def generate(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def record(folder: str = "generated") -> dict[str, Any]:
    return json.loads(Path(folder, "generation.json").read_text())


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path), np.int16)


def drawn_by_diffusers(pipeline: StableDiffusionPipeline, prompt: str, seed: int) -> np.ndarray[Any, Any]:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    noise = torch.Generator().manual_seed(seed)
    drawn = pipeline(prompt, num_inference_steps=2, guidance_scale=3.0, generator=noise).images[0]
    return np.asarray(drawn, np.int16)


def test_the_pictures_are_those_that_diffusers_draws_with_the_recorded_seeds(tiny_sd: Path) -> None:
    code, output, _ = generate(tiny_sd, "-p", "a dog", "-p", "a cat", "-n", 3, "--seed", 5, "--batch", 4, *QUICK)
    assert code == 0
    assert [line.split() for line in output.splitlines()] == [
        ["pictures", "generated/pictures"],
        ["contact", "sheet", "generated/contact_sheet-001.png"],
        ["record", "generated/generation.json"],
    ]
    told = record()
    assert [(one["prompt"], one["seed"]) for one in told["pictures"]] == [
        (prompt, seed) for prompt in ("a dog", "a cat") for seed in (5, 6, 7)
    ]
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    for one in told["pictures"]:
        path = Path("generated", one["path"])
        assert hashlib.sha256(path.read_bytes()).hexdigest() == one["sha256"]
        expected = drawn_by_diffusers(pipeline, one["prompt"], one["seed"])
        assert np.abs(pixels(path) - expected).max() <= 2
        assert f"Seed: {one['seed']}, Size: 16x16" in Image.open(path).text["parameters"]
    assert Image.open("generated/contact_sheet-001.png").width > 300


def test_what_is_there_is_not_drawn_again(tiny_sd: Path) -> None:
    generate(tiny_sd, "-p", "a dog", "-n", 3, *QUICK)
    paths = [Path("generated", one["path"]) for one in record()["pictures"]]
    before = [path.read_bytes() for path in paths]
    first = paths[0].stat()
    paths[1].unlink()
    Path("generated/pictures/.finetune-part-half").write_bytes(b"half a picture")

    code, output, _ = generate(tiny_sd, "-p", "a dog", "-n", 4, *QUICK)
    assert code == 0
    assert output.startswith("2 of 4 pictures were there already\n")
    assert paths[0].stat().st_mtime_ns == first.st_mtime_ns
    assert paths[2].read_bytes() == before[2]
    old = np.asarray(Image.open(io.BytesIO(before[1])), np.int16)
    assert np.abs(pixels(paths[1]) - old).max() <= 2, "drawn in another batch, so rounded differently"
    assert len(record()["pictures"]) == 4

    code, output, _ = generate(tiny_sd, "-p", "a dog", "-n", 4, "--negative", "a cat", *QUICK)
    assert "were there already" not in output, "another negative prompt draws other pictures"
    assert len(list(Path("generated/pictures").glob("*.png"))) == 8


def test_ctrl_c_keeps_what_was_drawn_and_the_same_command_goes_on(
    tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = FileStore.put_bytes

    def interrupted_put(store: FileStore, key: str, data: bytes, if_none_match: bool = False) -> bool:
        if len(list(Path("generated/pictures").glob("*.png"))) == 2:
            signal.raise_signal(signal.SIGINT)
        return put(store, key, data, if_none_match)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "put_bytes", interrupted_put)
        code, _, errors = generate(tiny_sd, "-p", "a dog", "-n", 6, "--batch", 2, *QUICK)
    assert code == 75
    assert errors.strip().endswith("stopped after 4 of 6 pictures; they are kept; the same command goes on")
    assert not Path("generated/generation.json").exists(), "it would name pictures that are not there"

    code, output, _ = generate(tiny_sd, "-p", "a dog", "-n", 6, "--batch", 2, *QUICK)
    assert (code, output.splitlines()[0]) == (0, "4 of 6 pictures were there already")
    assert len(record()["pictures"]) == 6


def test_what_cannot_be_drawn_is_said_before_anything_is_loaded(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/manifest.json").write_text('{"name": "a web app"}')
    (tmp_path / "file").write_text("")
    (tmp_path / "none.txt").write_text("# nothing\n")
    for arguments, expected, words in [
        (("nowhere", "-p", "a"), 78, "RESULT is nowhere, but there is no manifest.json; name the output.uri of a run"),
        (("empty", "-p", "a"), 78, "RESULT is empty, but there is no manifest.json"),
        (("foreign", "-p", "a"), 65, "is not a manifest of a run (run: Field required)"),
        (("builtin://nothing", "-p", "a"), 78, "there is no such built-in model; use builtin://tiny-shapes"),
        (("ftp://model", "-p", "a"), 78, "ftp://model"),
        ((tiny_sd,), 78, "there is nothing to draw; say what with --prompt"),
        ((tiny_sd, "--prompts", "missing.txt"), 78, "--prompts is missing.txt, which cannot be read"),
        ((tiny_sd, "--prompts", "none.txt"), 65, "--prompts is none.txt, which holds no prompt; write one a line"),
        ((tiny_sd, "-p", "a", "--out", "file/below"), 78, "--out is file/below, but"),
        ((tiny_sd, "-p", "a", "--base-model", "builtin://tiny-shapes"), 78, "a base model: remove --base-model"),
    ]:
        code, _, errors = generate(*arguments)
        assert (code, words in errors) == (expected, True), (arguments, code, errors)


def test_pictures_go_to_a_bucket_and_are_looked_for_there(
    tiny_sd: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    where = f"s3://{bucket}/pictures-of-a-dog/"
    assert generate(tiny_sd, "-p", "a dog", "-n", 2, "-o", where, *QUICK)[0] == 0
    code, output, _ = generate(tiny_sd, "-p", "a dog", "-n", 3, "-o", where, *QUICK)
    assert (code, output.splitlines()[0]) == (0, "2 of 3 pictures were there already")

    def read(key: str) -> bytes:
        data: bytes = s3.client().get_object(Bucket=bucket, Key=f"pictures-of-a-dog/{key}")["Body"].read()
        return data

    told = json.loads(read("generation.json"))
    assert len(told["pictures"]) == 3
    assert all(hashlib.sha256(read(one["path"])).hexdigest() == one["sha256"] for one in told["pictures"])
    assert not Path("generated").exists()
