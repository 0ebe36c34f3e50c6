"""What a generation consists of, and what its files say."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from finetune_api import FineTuneJobSpec, RunIdentity, resolve
from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.generation.picture_text import parameters, png
from finetune_trainer.generation.plan import Recipe, identity_of, plan, slug
from finetune_trainer.generation.prompts import gather
from finetune_trainer.generation.results import RunResults
from finetune_trainer.generation.sheets import CELL, Print, pages, sheet
from finetune_trainer.publish.manifest import Manifest, ManifestFile, ManifestInput, ManifestTraining
from PIL import Image

RECIPE = Recipe(
    model="0123456789abcdef" * 4,
    negative_prompt="blurry",
    inference_steps=30,
    guidance_scale=7.5,
    sampler={"name": "DPMSolverMultistepScheduler", "dtype": "float32"},
    width=512,
    height=512,
)


def test_picture_k_has_seed_plus_k_prompt_by_prompt() -> None:
    pictures = plan(RECIPE, ["a dog", "a cat", "a dog"], 3, 10)
    assert [(one.prompt, one.seed) for one in pictures] == [
        ("a dog", 10), ("a dog", 11), ("a dog", 12), ("a cat", 10), ("a cat", 11), ("a cat", 12)
    ]  # fmt: skip
    assert plan(RECIPE, ["a dog"], 2, 11) == pictures[1:3], "pictures do not depend on how many there are"


def test_names_are_stable_because_a_generation_goes_on_by_them() -> None:
    assert plan(RECIPE, ["A dog, (very) happy"], 1, 7)[0].path == "pictures/a-dog-very-happy-seed-7-01913a0eeec1.png"


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "f" * 64},
        {"negative_prompt": ""},
        {"inference_steps": 31},
        {"guidance_scale": 7.0},
        {"sampler": {"name": "DPMSolverMultistepScheduler", "dtype": "bfloat16"}},
        {"width": 768},
        {"height": 768},
    ],
)
def test_other_settings_never_pass_for_the_same_picture(changed: dict[str, object]) -> None:
    assert plan(replace(RECIPE, **changed), ["a dog"], 1, 0)[0].path != plan(RECIPE, ["a dog"], 1, 0)[0].path


def test_weights_are_what_was_trained_and_what_it_lies_on() -> None:
    run, base, another = "1" * 64, "2" * 64, "3" * 64
    assert identity_of(None, base) == base and identity_of(run, None) == run
    together = {identity_of(run, base), identity_of(run, another), identity_of(another, base), run, base, another}
    assert len(together) == 6 and all(len(one) == 64 for one in together)


def test_prompts_with_the_same_beginning_have_files_of_their_own() -> None:
    prompts = ["word " * 30 + "one", "word " * 30 + "two", "…", "犬"]
    paths = [picture.path for picture in plan(RECIPE, prompts, 1, 0)]
    assert len(set(paths)) == 4
    assert all(len(path) < 100 and path.isascii() for path in paths)
    assert slug("…") == "no-words"


def test_a_picture_says_how_it_was_made_as_web_uis_do() -> None:
    picture = plan(RECIPE, ["a dog"], 1, 7)[0]
    text = parameters(RECIPE, picture, "my-dog")
    assert text == (
        "a dog\n"
        "Negative prompt: blurry\n"
        "Steps: 30, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 7, Size: 512x512, Model hash: 0123456789, Model: my-dog"
    )
    image = Image.open(io.BytesIO(png(Image.new("RGB", (4, 4)), text)))
    assert image.text == {"parameters": text}


def test_what_would_break_the_line_is_quoted() -> None:
    bare = replace(RECIPE, negative_prompt="")
    text = parameters(bare, plan(bare, ["a"], 1, 0)[0], "dog: v1, final")
    assert text.endswith(', Model: "dog: v1, final"')
    assert "Negative prompt" not in text


def test_prompts_come_from_the_command_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# animals\na dog\n\n  a cat  \n", "utf-8")
    assert gather([" a bird ", "a dog"], file, None) == ("a bird", "a dog", "a cat")


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, ConfigurationError, "--prompts is .*prompts.txt, which cannot be read .*; correct the path"),
        (b"# nothing\n\n", DataError, "which holds no prompt; write one a line"),
        (b"\xff\xfe\x00", DataError, "which is not UTF-8 text"),
    ],
)
def test_a_bad_file_of_prompts(tmp_path: Path, content: bytes | None, error: type[Exception], words: str) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(error, match=words):
        gather((), file, None)


def test_nothing_to_draw() -> None:
    with pytest.raises(ConfigurationError, match="say what with --prompt"):
        gather(["  "], None, None)


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (100, [100]), (101, [100, 1]), (250, [100, 100, 50])])
def test_pages_of_a_hundred(count: int, sizes: list[int]) -> None:
    found = list(pages(count))
    assert [len(page) for page in found] == sizes
    assert [index for page in found for index in page] == list(range(count))


def test_each_prompt_begins_a_row_of_its_own() -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#0000ff"))
    prints = [Print.of("red", str(seed), red) for seed in range(12)] + [Print.of("blue", "0", blue)]
    page = sheet("title", prints)

    def rows_with(colour: tuple[int, int, int]) -> list[int]:
        return [y for y in range(page.height) if any(page.getpixel((x, y)) == colour for x in range(24, 40))]

    assert len(rows_with((255, 0, 0))) == 2 * CELL, "twelve pictures take two rows"
    assert len(rows_with((0, 0, 255))) == CELL
    assert rows_with((0, 0, 255))[0] > rows_with((255, 0, 0))[-1]


ADAPTER, KOHYA = "lora/pytorch_lora_weights.safetensors", "lora/my-dog.safetensors"
PIPELINE = ("pipeline/model_index.json", "pipeline/unet/diffusion_pytorch_model.safetensors")
WORD = {"placeholder": "<dog>"}
PIVOTAL = {"lora": {"prompt": "a <dog>", "tokens": [WORD]}}


@pytest.mark.parametrize(
    ("method", "files", "chosen"),
    [
        ({"lora": {"prompt": "sks"}}, (KOHYA, ADAPTER, *PIPELINE), (ADAPTER,)),
        ({"lora": {"prompt": "sks"}}, (KOHYA,), (KOHYA,)),
        ({"lora": {"prompt": "sks"}}, ("my-dog.safetensors", *PIPELINE), PIPELINE),
        (
            PIVOTAL,
            (ADAPTER, "embeddings/dog.safetensors", "embeddings/dog.pt"),
            (ADAPTER, "embeddings/dog.safetensors"),
        ),
        (PIVOTAL, (*PIPELINE, "my-dog.safetensors", "embeddings/dog.safetensors"), PIPELINE),
        (PIVOTAL, (ADAPTER, *PIPELINE, "embeddings/dog.safetensors"), (ADAPTER, "embeddings/dog.safetensors")),
        (
            PIVOTAL,
            ("embeddings/dog.safetensors", "my-dog.safetensors"),
            ("my-dog.safetensors", "embeddings/dog.safetensors"),
        ),
        ({"dreamBooth": {"prompt": "sks"}}, ("my-dog.safetensors",), ("my-dog.safetensors",)),
        ({"dreamBooth": {"prompt": "sks"}}, ("my-dog.safetensors", *PIPELINE), PIPELINE),
        (
            {"textualInversion": {"tokens": [WORD]}},
            ("embeddings/dog.safetensors", "embeddings/dog.pt"),
            ("embeddings/dog.safetensors",),
        ),
        (
            {"hypernetwork": {"prompt": "sks"}},
            ("hypernetwork/my-dog.pt", "hypernetwork/my-dog.safetensors"),
            ("hypernetwork/my-dog.safetensors",),
        ),
    ],
)
def test_which_of_the_published_files_it_takes(
    method: dict[str, object], files: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    found = results_of(method, (*files, "report.html", "samples/pictures/a.png")).weights().files()
    assert [file.path for file in found] == [f"attempts/one/{name}" for name in chosen]


def test_a_model_that_was_only_published_for_other_programs() -> None:
    words = "as SingleFile only, for other programs; train with Diffusers among"
    for method, files in (
        ({"dreamBooth": {"prompt": "sks"}}, ("my-dog.safetensors",)),
        (PIVOTAL, ("my-dog.safetensors", "embeddings/dog.safetensors")),
    ):
        with pytest.raises(ConfigurationError, match=words):
            results_of(method, files, ["SingleFile"]).drawable()


def results_of(method: dict[str, object], files: tuple[str, ...], formats: list[str] | None = None) -> RunResults:
    output = {"uri": "file:///results", **({"formats": formats} if formats else {})}
    spec = {
        "baseModel": {"uri": "builtin://tiny-shapes"},
        "method": method,
        "dataset": {"uri": "file:///p"},
        "output": output,
    }
    identity = RunIdentity(name="my-dog", namespace="local", uid="one")
    manifest = Manifest(
        run=identity,
        run_sha256="0" * 64,
        attempt="one",
        created="2026-01-01T00:00:00+00:00",
        base_model=ManifestInput(uri="builtin://tiny-shapes", revision="1"),
        dataset=ManifestInput(uri="file:///p", revision="1"),
        training=ManifestTraining(steps=1, loss=0.1, device="cpu"),
        weights=("attempts/one/any",),
        files=tuple(ManifestFile(path=f"attempts/one/{name}", size=1, sha256="0" * 64) for name in files),
        libraries={},
        settings={},
    )
    run = resolve(FineTuneJobSpec.model_validate(spec), None, identity)
    return RunResults("results", manifest, "0" * 64, run)
