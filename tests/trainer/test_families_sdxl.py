"""SDXL, beside Diffusers' own pipeline."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.errors import DataError
from finetune_trainer.families import Family, load_family
from finetune_trainer.families.noise import drawing_scheduler
from finetune_trainer.methods import NoFiles, make_methods, needs_of
from finetune_trainer.training.making_samples import make_samples
from finetune_trainer.training.step_module import StepModule
from safetensors.torch import load_file
from support.tiny_sdxl import POOLED, WIDTHS, build_tiny_sdxl
from support.training import dataset_of, make_run

CPU = torch.device("cpu")
PROMPTS, NEGATIVES = ["a dog", "two cats"], ["blurry", "bad"]


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def family(tiny_sdxl: Path) -> Family:
    return load_family(tiny_sdxl, CPU)


@pytest.fixture(scope="module")
def theirs(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    """Diffusers' pipeline with our sampler."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False)
    pipeline.scheduler = drawing_scheduler(dict(pipeline.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_what_a_model_says_of_itself(family: Family) -> None:
    assert family.name == "stable-diffusion-xl"
    assert (family.resolution, family.pixels_per_latent, family.latent_channels, family.timesteps) == (16, 2, 4, 1000)
    assert sorted(family.digests) == [
        "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae",
    ]  # fmt: skip
    assert family.text_encoders == ("text_encoder", "text_encoder_2")
    assert family.sampler["name"] == "DPMSolverMultistepScheduler"
    assert {type(part).__name__: part.dtype for part in family.parts.values()} == {
        "UNet2DConditionModel": torch.float32,
        "AutoencoderKL": torch.float32,
        "CLIPTextModel": torch.float32,
        "CLIPTextModelWithProjection": torch.float32,
    }
    assert not any(value.requires_grad for part in family.parts.values() for value in part.parameters())


def test_each_encoder_has_its_own_padding(family: Family) -> None:
    first, second = family.tokenize(["a"])[0]
    assert first[:3].tolist() == second[:3].tolist(), "begin, a, end"
    assert set(first[3:].tolist()) == {first[2].item()}
    assert set(second[3:].tolist()) == {0}, "the exclamation mark"


@torch.no_grad()
def test_text_is_encoded_as_the_pipeline_does(family: Family, theirs: StableDiffusionXLPipeline) -> None:
    cond = family.encode_text(family.tokenize(PROMPTS))
    embeddings, _, pooled, _ = theirs.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    assert cond.embeddings.shape == (2, 24, sum(WIDTHS.values()))
    assert torch.equal(cond.embeddings, embeddings)
    assert cond.pooled is not None
    assert cond.pooled.shape == (2, POOLED)
    assert torch.equal(cond.pooled, pooled)


@torch.no_grad()
@pytest.mark.parametrize("zeros", [True, False])
def test_no_prompt_is_what_the_pipeline_says(zeros: bool, tmp_path: Path) -> None:
    model = build_tiny_sdxl(tmp_path, zeros_for_empty=zeros)
    family = load_family(model, CPU)
    cond = family.encode_text(family.tokenize(["", "a dog"]))
    assert cond.pooled is not None
    assert [not row.any() for row in cond.embeddings] == [zeros, False]
    assert [not row.any() for row in cond.pooled] == [zeros, False]
    # what it draws with when nobody gives a negative prompt
    pipeline = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
    _, negative, _, negative_pooled = pipeline.encode_prompt(["a dog"])
    torch.testing.assert_close(cond.embeddings[:1], negative)
    torch.testing.assert_close(cond.pooled[:1], negative_pooled)
    assert family.sampler["force_zeros_for_empty_prompt"] is zeros


@pytest.mark.parametrize(("negatives", "guidance"), [(NEGATIVES, 5.0), (["", ""], 5.0), (NEGATIVES, 1.0)])
def test_it_draws_what_diffusers_draws(
    negatives: list[str], guidance: float, family: Family, theirs: StableDiffusionXLPipeline
) -> None:
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    ours = family.draw(PROMPTS, negatives, noise, 3, guidance)
    pictures = theirs(
        PROMPTS,
        negative_prompt=negatives if any(negatives) else None,
        latents=noise,
        num_inference_steps=3,
        guidance_scale=guidance,
    ).images
    for one, other in zip(ours, pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert not np.array_equal(np.asarray(ours[0]), np.asarray(ours[1]))


def test_a_picture_that_is_not_square_is_drawn_with_its_own_size(
    family: Family, theirs: StableDiffusionXLPipeline
) -> None:
    noise = torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(0))
    (ours,) = family.draw(["a"], ["b"], noise, 2, 5.0)
    settings = {"negative_prompt": ["b"], "latents": noise, "num_inference_steps": 2, "guidance_scale": 5.0}
    (picture,) = theirs(["a"], height=16, width=24, **settings).images
    assert ours.size == picture.size == (24, 16)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(picture))


@torch.no_grad()
def test_the_size_changes_the_prediction(family: Family) -> None:
    noisy, timesteps = torch.ones(1, 4, 8, 8), torch.tensor([500])
    cond = family.encode_text(family.tokenize(["a"]))
    whole = family.predict(noisy, timesteps, cond, torch.tensor([[16.0, 16, 0, 0, 16, 16]]))
    cropped = family.predict(noisy, timesteps, cond, torch.tensor([[16.0, 32, 0, 8, 16, 16]]))
    assert whole.shape == noisy.shape
    assert not torch.equal(whole, cropped)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [({}, "noise"), ({"prediction_type": "v_prediction"}, "velocity")],
)
def test_what_is_predicted(scheduler: dict[str, object], expected: str, tmp_path: Path) -> None:
    family = load_family(build_tiny_sdxl(tmp_path, **scheduler), CPU)
    latents, noise, timesteps = torch.full((1, 4, 8, 8), 3.0), torch.full((1, 4, 8, 8), 2.0), torch.tensor([400])
    alpha = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)[400]
    targets = {"noise": noise, "velocity": alpha.sqrt() * noise - (1 - alpha).sqrt() * latents}
    torch.testing.assert_close(family.target(latents, noise, timesteps), targets[expected])
    torch.testing.assert_close(
        family.add_noise(latents, noise, timesteps), alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    )
    torch.testing.assert_close(family.snr(timesteps), (alpha / (1 - alpha)).view(1))
    assert family.prediction_type == {"noise": "epsilon", "velocity": "v_prediction"}[expected]


@pytest.mark.parametrize("technique", ["dreamBooth", "textualInversion"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_diffusers_own_parts(
    technique: str, prediction: str, pictures: Path, tmp_path: Path
) -> None:
    """With the text encoded once and with it encoded in the step; nothing of the family but what was drawn."""
    model = build_tiny_sdxl(tmp_path, prediction_type=prediction)
    family, folder = load_family(model, CPU), PictureSet.open(pictures)
    tokens = [{"placeholder": "<new>", "initializer": "b"}]
    method = {"tokens": tokens, "normalizeEmbeddings": False} if technique == "textualInversion" else {"prompt": "a b"}
    run = make_run(technique, method={technique: method}, training={"batchSize": 2})
    methods = make_methods(run.method, 0)
    for each in methods:
        each.install(family, NoFiles())
    (batch,) = make_samples(run, family, methods, dataset_of(run, folder), PictureSet.of([], "none"), None).step(0)
    if technique == "textualInversion":
        batch = replace(batch, token_ids=family.tokenize(["a <new>"] * 2))
    module = StepModule(family, needs_of(methods), run.training.loss)
    _, losses = module(batch)

    pipeline = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
    noise = DDPMScheduler.from_config(pipeline.scheduler.config)
    moments = batch.moments
    latents = (moments.mean + (0.5 * moments.logvar).exp() * batch.posterior_noise) * pipeline.vae.config.scaling_factor
    embeddings, _, pooled, _ = pipeline.encode_prompt(["a b"] * 2, do_classifier_free_guidance=False)
    prediction_made = pipeline.unet(
        noise.add_noise(latents, batch.noise, batch.timesteps),
        batch.timesteps,
        embeddings,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": batch.sizes},
    ).sample
    target = batch.noise if prediction == "epsilon" else noise.get_velocity(latents, batch.noise, batch.timesteps)
    expected = (prediction_made - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected)

    with torch.autocast("cpu", torch.bfloat16):
        _, rough = module(batch)
    torch.testing.assert_close(rough.float(), expected, rtol=0.05, atol=0)


def test_a_model_in_half_precision_only(tmp_path: Path) -> None:
    plain = load_family(build_tiny_sdxl(tmp_path / "plain"), CPU)
    half = load_family(build_tiny_sdxl(tmp_path / "half", variant="fp16"), CPU)
    for name, part in plain.parts.items():
        for one, other in zip(part.parameters(), half.parts[name].parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_vae_computes_in_full_precision_whatever_surrounds_it(family: Family) -> None:
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    expected = family.encode_image(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        moments = family.encode_image(pixels)
    assert torch.equal(moments.mean, expected.mean)
    assert torch.equal(moments.logvar, expected.logvar)


def test_the_exported_pipeline_is_the_model(family: Family, tiny_sdxl: Path, tmp_path: Path) -> None:
    family.pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index == json.loads((tiny_sdxl / "model_index.json").read_text())
    for file in sorted(tiny_sdxl.rglob("*.safetensors")):
        before, after = load_file(file), load_file(tmp_path / file.relative_to(tiny_sdxl))
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[key]) for key, value in before.items())
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    (one,), (other,) = (each.draw(["a"], [""], noise, 2, 5.0) for each in (family, load_family(tmp_path, CPU)))
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_missing_second_encoder_is_named(tiny_sdxl: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_sdxl, tmp_path / "model"))
    shutil.rmtree(model / "text_encoder_2")
    with pytest.raises(DataError, match=r"^baseModel: .* has no text_encoder_2/; it must have unet, vae, text_encoder"):
        load_family(model, CPU)
