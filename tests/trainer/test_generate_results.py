"""Pictures with what a run has trained: what `finetune generate` loads is what Diffusers loads; spec.samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from finetune_api.outputs import SamplesSpec
from finetune_trainer.cli import app
from finetune_trainer.errors import Interrupted
from finetune_trainer.families import load_family
from finetune_trainer.generation.record import Source
from finetune_trainer.generation.samples import draw_samples
from PIL import Image
from support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from support.tiny_sd import build_tiny_sd
from support.tiny_sdxl import build_tiny_sdxl
from support.training import Memory
from typer.testing import CliRunner

QUICK = ("-n", "2", "--steps", "2", "--guidance", "3")


@pytest.fixture(autouse=True)
def a_machine_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def finetune(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def train(model: Path, pictures: Path, method: dict[str, object], **sections: object) -> dict[str, Any]:
    """Runs the trainer; the results are in results/. Returns the manifest."""
    spec = {
        "baseModel": {"uri": f"file://{model}"},
        "method": method,
        "dataset": {"uri": f"file://{pictures}"},
        "training": {"steps": 3, "learningRate": 0.02},
        "validation": {"prompts": ["sks dog"], "imagesPerPrompt": 1, "inferenceSteps": 1},
        "output": {"uri": "file://./results"},
        **sections,
    }
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "dog"}, "spec": spec}
    Path("job.yaml").write_text(json.dumps(job))
    code, _, errors = finetune("run", "job.yaml")
    assert code == 0, errors
    manifest: dict[str, Any] = json.loads(Path("results/manifest.json").read_text())
    return manifest


def pictures_in(folder: Path) -> list[np.ndarray[Any, Any]]:
    told = json.loads((folder / "generation.json").read_text())
    return [np.asarray(Image.open(folder / one["path"]), np.int16) for one in told["pictures"]]


def drawn_by(pipeline: StableDiffusionPipeline, prompt: str) -> list[np.ndarray[Any, Any]]:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    return [
        np.asarray(
            pipeline(
                prompt, num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(seed)
            ).images[0],
            np.int16,
        )
        for seed in (0, 1)
    ]


def difference(first: list[np.ndarray[Any, Any]], second: list[np.ndarray[Any, Any]]) -> int:
    return max(int(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


LORA = {"lora": {"prompt": "sks dog", "rank": 2, "targets": ["attention", "convolution"]}}
DREAMBOOTH = {"dreamBooth": {"prompt": "sks dog"}}
INVERSION = {"textualInversion": {"tokens": [{"placeholder": "<dog>", "vectors": 2, "initializer": "d"}]}}
HYPERNETWORK = {"hypernetwork": {"prompt": "sks dog"}}
PIVOTAL = {"lora": {**LORA["lora"], "prompt": "<dog> dog", "tokens": [{"placeholder": "<dog>", "vectors": 2}]}}


@pytest.mark.parametrize(
    ("method", "prompt", "formats"),
    [
        (LORA, "sks dog", None),
        (DREAMBOOTH, "sks dog", None),
        (INVERSION, "a <dog>", None),
        (PIVOTAL, "a <dog>", None),
        (PIVOTAL, "a <dog>", ["Merged"]),
        (PIVOTAL, "a <dog>", ["Merged", "SingleFile"]),
    ],
    ids=["lora", "dreamBooth", "textualInversion", "pivotal", "pivotal merged", "pivotal merged and one file"],
)
def test_it_draws_what_diffusers_draws_with_the_published_files(
    tiny_sd: Path, pictures: Path, method: dict[str, object], prompt: str, formats: list[str] | None
) -> None:
    chosen = {} if formats is None else {"formats": formats}
    manifest = train(tiny_sd, pictures, method, output={"uri": "file://./results", **chosen})
    assert finetune("generate", "results", "-p", prompt, *QUICK)[0] == 0
    assert finetune("generate", tiny_sd, "-p", prompt, "-o", "base", *QUICK)[0] == 0

    files = {Path(file).parent.name: Path("results", file) for file in manifest["weights"]}
    whole = next((Path("results", file) for file in manifest["weights"] if file.endswith("pipeline")), None)
    pipeline = StableDiffusionPipeline.from_pretrained(whole or tiny_sd)
    if "embeddings" in files and whole is None:
        pipeline.load_textual_inversion(files["embeddings"])
    if "lora" in files:
        pipeline.load_lora_weights(files["lora"].parent, weight_name="pytorch_lora_weights.safetensors")
    assert difference(pictures_in(Path("generated")), drawn_by(pipeline, prompt)) <= 2
    assert difference(pictures_in(Path("generated")), pictures_in(Path("base"))) > 4, "what was trained shows"
    told = json.loads(Path("generated/generation.json").read_text())
    assert told["source"] == {
        "name": "dog",
        "uri": f"file://{Path('results').absolute()}",
        "technique": next(iter(method)),
        "baseModel": f"file://{tiny_sd}",
        "baseModelRevision": manifest["baseModel"]["revision"],
    }


def test_words_beside_one_file_for_other_programs_are_not_drawn_with_alone(tiny_sd: Path, pictures: Path) -> None:
    train(tiny_sd, pictures, PIVOTAL, output={"uri": "file://./results", "formats": ["SingleFile"]})
    assert list(Path("results").glob("attempts/*/embeddings/dog.safetensors"))
    code, _, errors = finetune("generate", "results", "-p", "a <dog>", *QUICK)
    assert (code, "as SingleFile only, for other programs; train with Diffusers among" in errors) == (78, True), errors


def test_a_hypernetwork_is_put_on(tiny_sd: Path, pictures: Path) -> None:
    train(
        tiny_sd,
        pictures,
        HYPERNETWORK,
        samples={"prompts": ["sks dog"], "imagesPerPrompt": 2, "inferenceSteps": 2, "guidanceScale": 3},
    )
    assert finetune("generate", "results", "-p", "sks dog", *QUICK)[0] == 0
    assert finetune("generate", tiny_sd, "-p", "sks dog", "-o", "base", *QUICK)[0] == 0
    (samples,) = Path("results").glob("attempts/*/samples")
    assert difference(pictures_in(Path("generated")), pictures_in(samples)) <= 2, "as the training left it"
    assert difference(pictures_in(Path("generated")), pictures_in(Path("base"))) > 4


def test_two_text_encoders_get_their_words_back(tmp_path: Path, pictures: Path) -> None:
    tiny_sdxl = build_tiny_sdxl(tmp_path / "sdxl")
    samples = {"prompts": ["a <dog>"], "imagesPerPrompt": 2, "inferenceSteps": 2, "guidanceScale": 3}
    train(tiny_sdxl, pictures, PIVOTAL, samples=samples)
    assert finetune("generate", "results", "-p", "a <dog>", *QUICK)[0] == 0
    (drawn_in_the_run,) = Path("results").glob("attempts/*/samples")
    assert difference(pictures_in(Path("generated")), pictures_in(drawn_in_the_run)) <= 2


def test_results_in_a_bucket(
    tiny_sd: Path, pictures: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_sd, pictures, LORA)
    s3.put(
        bucket,
        {
            f"dog/{path.relative_to('results').as_posix()}": path.read_bytes()
            for path in Path("results").rglob("*")
            if path.is_file()
        },
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert finetune("generate", f"s3://{bucket}/dog/", "-p", "sks dog", "-o", "from-s3", *QUICK)[0] == 0
    assert finetune("generate", "results", "-p", "sks dog", *QUICK)[0] == 0
    assert difference(pictures_in(Path("from-s3")), pictures_in(Path("generated"))) == 0

    (kept,) = Path("cache").rglob("pytorch_lora_weights.safetensors")
    kept.write_bytes(b"broken by a full disk")
    assert finetune("generate", f"s3://{bucket}/dog/", "-p", "sks dog", "-o", "again", *QUICK)[0] == 0
    assert difference(pictures_in(Path("again")), pictures_in(Path("generated"))) == 0
    code, _, errors = finetune("generate", f"s3://{bucket}-not-there/dog/", "-p", "sks dog")
    assert code == 78 and "has no bucket" in errors


def test_samples_go_on_where_an_attempt_was_stopped(tiny_sd: Path, tmp_path: Path) -> None:
    family = load_family(tiny_sd, torch.device("cpu"))
    spec = SamplesSpec(prompts=("a dog",), images_per_prompt=12, inference_steps=2)
    source = Source(name="dog", technique="lora", base_model="file:///sd", base_model_revision="1")

    def draw(step: int, answers: list[bool]) -> list[tuple[int, int]]:
        told = Memory()

        def should_stop() -> bool:
            return answers.pop(0) if answers else False

        draw_samples(family, spec, source, ("digest", step), tmp_path / "samples", told, should_stop)
        assert told.messages == ["Sampling"]
        return told.done

    with pytest.raises(Interrupted, match="stopped after 8 of 12 pictures; they are kept; the same run goes on from"):
        draw(3, [False, True])
    assert not (tmp_path / "samples/generation.json").exists()
    assert draw(3, []) == [(8, 12), (12, 12)]
    assert draw(4, [])[0] == (0, 12), "other weights draw other pictures"


def test_samples_are_published_like_weights(tiny_sd: Path, pictures: Path) -> None:
    wanted = {"prompts": ["sks dog", "a cat"], "imagesPerPrompt": 3, "inferenceSteps": 2, "guidanceScale": 3, "seed": 4}
    manifest = train(tiny_sd, pictures, LORA, samples=wanted)
    (folder,) = Path("results").glob("attempts/*/samples")
    told = json.loads((folder / "generation.json").read_text())
    assert [(one["prompt"], one["seed"]) for one in told["pictures"]] == [
        (prompt, seed) for prompt in ("sks dog", "a cat") for seed in (4, 5, 6)
    ]
    assert told["source"]["technique"] == "lora" and "uri" not in told["source"]
    listed = {file["path"]: file["sha256"] for file in manifest["files"]}
    inside = folder.relative_to("results")
    assert all(listed[f"{inside}/{one['path']}"] == one["sha256"] for one in told["pictures"])
    assert f"{inside}/contact_sheet-001.png" in listed

    code, _, _ = finetune(
        "generate", "results", "-p", "sks dog", "-p", "a cat", "-n", 3, "--seed", 4, "--steps", 2, "--guidance", 3
    )
    assert code == 0
    assert difference(pictures_in(Path("generated")), pictures_in(folder)) <= 2, "the same from the published files"
    assert finetune("generate", "results", "-o", "again", *QUICK)[0] == 0
    again = json.loads(Path("again/generation.json").read_text())
    assert {one["prompt"] for one in again["pictures"]} == {"sks dog"}, "validation's prompts where none are given"


def test_weights_that_are_not_those_of_the_manifest_are_refused(tiny_sd: Path, pictures: Path) -> None:
    manifest = train(tiny_sd, pictures, LORA)
    weights = Path("results", next(path for path in manifest["weights"] if path.endswith("lora_weights.safetensors")))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    code, _, errors = finetune("generate", "results", "-p", "a dog")
    assert (code, "it was changed or is broken; copy it anew" in errors) == (65, True), errors
    weights.unlink()
    code, _, errors = finetune("generate", "results", "-p", "a dog")
    assert (code, "but that is not there; copy the whole folder" in errors) == (65, True), errors


def test_another_base_model_than_it_was_trained_on(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    train(tiny_sd, pictures, LORA)
    other = tmp_path / "other"
    other.symlink_to(tiny_sd)
    assert finetune("generate", "results", "-p", "a dog", "--base-model", other, *QUICK)[0] == 0
    manifest = json.loads(Path("results/manifest.json").read_text())
    manifest["baseModel"]["revision"] = "sha256:another"
    Path("results/manifest.json").write_text(json.dumps(manifest))
    code, _, errors = finetune("generate", "results", "-p", "a dog", *QUICK)
    assert (code, "at revision sha256:another, but" in errors) == (65, True), errors
    manifest["baseModel"]["uri"] = "pvc://models/sd"
    Path("results/manifest.json").write_text(json.dumps(manifest))
    code, _, errors = finetune("generate", "results", "-p", "a dog", *QUICK)
    assert (code, "name the same model elsewhere with --base-model" in errors) == (78, True), errors
    assert finetune("generate", "results", "-p", "a dog", "--base-model", tiny_sd, *QUICK)[0] == 0
    own, different = pictures_in(Path("generated")), build_tiny_sd(tmp_path / "different", seed=1)
    code, output, _ = finetune("generate", "results", "-p", "a dog", "--base-model", different, *QUICK)
    assert code == 0 and "were there already" not in output, "pictures of another base model are others"
    assert difference(own, pictures_in(Path("generated"))) > 4
    code, output, _ = finetune("generate", "results", "-p", "a dog", "--base-model", other, *QUICK)
    assert code == 0 and "2 of 2 pictures were there already" in output, "of the same model elsewhere they are the same"
