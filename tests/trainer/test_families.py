"""Base models: which load, and what is said of those that do not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from finetune_trainer.errors import DataError
from finetune_trainer.families import Moments, load_family
from safetensors.torch import load_file, save_file
from support.tiny_sd import build_tiny_sd
from support.tiny_sdxl import build_tiny_sdxl
from transformers import CLIPTextModel

CPU = torch.device("cpu")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file, metadata={"format": "pt"})


UNET = "unet/diffusion_pytorch_model.safetensors"
BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("no index", lambda m: (m / "model_index.json").unlink(), r"has no model_index\.json; give a model in Diffusers"),
    ("index is no JSON", lambda m: (m / "model_index.json").write_text("{"), r"model_index\.json is not a JSON object"),
    (
        "another kind",
        lambda m: edit(m / "model_index.json", _class_name="FluxPipeline"),
        "is a FluxPipeline; these can be fine-tuned: StableDiffusionPipeline, StableDiffusionXLPipeline "
        r"\(Stable Diffusion 1\.x and 2\.x, SDXL\)$",
    ),
    ("no vae", lambda m: shutil.rmtree(m / "vae"), "has no vae/; it must have unet, vae, text_encoder, tokenizer"),
    (
        "pickle only",
        lambda m: (m / UNET).rename(m / UNET.replace("safetensors", "bin")),
        "only safetensors weights are",
    ),
    ("weights cut off", lambda m: (m / UNET).write_bytes((m / UNET).read_bytes()[:5000]), "unet/ of .* cannot be read"),
    ("tensor missing", lambda m: drop_a_tensor(m / UNET), "unet/ of .* cannot be read: 1 tensors are missing"),
    (
        "text encoder lacks a tensor",
        lambda m: drop_a_tensor(m / "text_encoder/model.safetensors"),
        "text_encoder/ of .* cannot be read: 1 tensors are missing",
    ),
    (
        "predicts pictures",
        lambda m: edit(m / "scheduler/scheduler_config.json", prediction_type="sample"),
        "says prediction_type sample; these can be trained: epsilon, v_prediction",
    ),
    (
        "not a scheduler",
        lambda m: edit(m / "scheduler/scheduler_config.json", _class_name="DiffusionPipeline"),
        "scheduler/ of .* cannot be read: DiffusionPipeline is not a scheduler",
    ),
    (
        "epsilon with zero terminal SNR",
        lambda m: edit(m / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
        "says prediction_type epsilon and rescale_betas_zero_snr true: at the last timestep there is noise alone.*; "
        "set prediction_type to v_prediction if the model was trained with it, else rescale_betas_zero_snr to false",
    ),
    (
        "flow matching",
        lambda m: edit(m / "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
        "is of a FlowMatchEulerDiscreteScheduler, which has no beta_schedule; .*: use another model",
    ),
    (
        "shifted latents",
        lambda m: edit(m / "vae/config.json", latents_mean=[0.1, 0.2, 0.3, 0.4]),
        "vae/config.json has latents_mean; .*: use another model",
    ),
]


@pytest.mark.parametrize(("name", "damage", "message"), BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_models_are_refused(
    name: str, damage: Callable[[Path], object], message: str, tiny_sd: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_sd, tmp_path / "model"))
    damage(model)
    with pytest.raises(DataError, match=f"^baseModel: .*{message}"):
        load_family(model, CPU)


def test_what_a_model_says_of_itself(tiny_sd: Path) -> None:
    family = load_family(tiny_sd, CPU)
    assert (family.resolution, family.pixels_per_latent, family.latent_channels, family.timesteps) == (16, 2, 4, 1000)
    assert sorted(family.digests) == ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    assert family.sampler["name"] == "DPMSolverMultistepScheduler"
    assert family.tokenize(["a", "b c"]).shape == (2, 1, 24)
    assert family.encode_text(family.tokenize(["a"])).embeddings.shape == (1, 24, 24)
    assert not any(value.requires_grad for part in family.parts.values() for value in part.parameters())


def test_the_digest_follows_the_contents(tiny_sd: Path, tmp_path: Path) -> None:
    copied = load_family(Path(shutil.copytree(tiny_sd, tmp_path / "elsewhere")), CPU)
    other = load_family(build_tiny_sd(tmp_path / "other", seed=1), CPU)
    assert copied.digest == load_family(tiny_sd, CPU).digest != other.digest
    assert copied.digests["tokenizer"] == other.digests["tokenizer"]


def test_text_encoders_saved_by_newer_libraries_are_read_whole(tiny_sd: Path, tmp_path: Path) -> None:
    """Their keys lack `text_model.`; read as they stand, every weight would be a random one."""
    model = Path(shutil.copytree(tiny_sd, tmp_path / "model"))
    file = model / "text_encoder" / "model.safetensors"
    flat = {key.removeprefix("text_model."): value for key, value in load_file(file).items()}
    save_file(flat, file, metadata={"format": "pt"})
    old, new = load_family(tiny_sd, CPU), load_family(model, CPU)
    ids = old.tokenize(["a dog"])
    assert torch.equal(old.encode_text(ids).embeddings, new.encode_text(ids).embeddings)


def in_shards(model: Path) -> Path:
    """The same weights, the UNet's and the text encoder's in several files."""
    for name, kind in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        part = kind.from_pretrained(model / name)
        shutil.rmtree(model / name)
        part.save_pretrained(model / name, max_shard_size="60kB")
        assert len(list((model / name).glob("*.safetensors"))) > 1
    return model


def test_models_that_come_in_shards(tiny_sd: Path, tmp_path: Path) -> None:
    whole = load_family(tiny_sd, CPU)
    model = in_shards(Path(shutil.copytree(tiny_sd, tmp_path / "model")))
    cut = load_family(model, CPU)
    for name, part in whole.parts.items():
        for one, other in zip(part.parameters(), cut.parts[name].parameters(), strict=True):
            assert torch.equal(one, other)
    assert cut.digest != whole.digest

    next((model / "unet").glob("*-00002-of-*")).unlink()
    with pytest.raises(DataError, match=r"^baseModel: unet/ of model cannot be read"):
        load_family(model, CPU)
    (model / f"{UNET}.index.json").write_text('{"weight_map": []}')
    with pytest.raises(DataError, match=r"^baseModel: unet/.*\.index\.json is no index of weights; fetch it anew"):
        load_family(model, CPU)


def test_models_that_come_in_fp16_only(tmp_path: Path) -> None:
    plain = load_family(build_tiny_sd(tmp_path / "plain"), CPU)
    half = load_family(build_tiny_sd(tmp_path / "half", variant="fp16"), CPU)
    for name, part in plain.parts.items():
        for one, other in zip(part.parameters(), half.parts[name].parameters(), strict=True):
            assert torch.equal(one, other)


def test_latents_are_samples_of_the_posterior(tiny_sd: Path) -> None:
    family = load_family(tiny_sd, CPU)
    moments = family.encode_image(torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16))
    assert moments.mean.shape == moments.logvar.shape == (1, 4, 8, 8)
    certain = Moments(moments.mean, torch.full_like(moments.logvar, -60))
    noise = torch.ones_like(moments.mean)
    torch.testing.assert_close(family.latents(certain, noise), 0.5 * moments.mean)
    doubled = Moments(torch.zeros_like(moments.mean), torch.full_like(moments.logvar, 2 * 0.6931472))
    torch.testing.assert_close(family.latents(doubled, noise), noise)


@pytest.mark.parametrize("build", [build_tiny_sd, build_tiny_sdxl])
def test_zero_terminal_snr(build: Callable[..., Path], tmp_path: Path) -> None:
    """The last timestep is noise alone, and such a model is drawn with by the sampler made for it."""
    family = load_family(build(tmp_path, prediction_type="v_prediction", rescale_betas_zero_snr=True), CPU)
    latents, noise = torch.full((1, 4, 8, 8), 9.0), torch.ones(1, 4, 8, 8)
    last = torch.tensor([999])
    assert torch.equal(family.add_noise(latents, noise, last), noise)
    assert torch.equal(family.target(latents, noise, last), -latents)
    assert family.snr(last).item() == 0
    assert family.prediction_type == "v_prediction"
    assert family.sampler["name"] == "DDIMScheduler"
    assert family.sampler["timestep_spacing"] == "trailing"
    (picture,) = family.draw(["a"], [""], torch.zeros(1, 4, 8, 8), 3, 5.0)
    assert picture.size == (16, 16)


@pytest.mark.parametrize("settings", [{}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}])
def test_signal_to_noise(settings: dict[str, object], tmp_path: Path) -> None:
    """As the variances of what add_noise puts together; finite and falling from the first timestep to the last."""
    family = load_family(build_tiny_sd(tmp_path, **settings), CPU)
    all_timesteps = torch.arange(family.timesteps)
    found = family.snr(all_timesteps)
    assert found.isfinite().all()
    assert (found.diff() < 0).all()
    one, none = torch.ones(1000, 1, 1, 1), torch.zeros(1000, 1, 1, 1)
    signal, noise = family.add_noise(one, none, all_timesteps), family.add_noise(none, one, all_timesteps)
    torch.testing.assert_close(found, (signal / noise).square().flatten(), rtol=2e-4, atol=0)


def test_dropout_is_off_while_drawing(tiny_sd: Path) -> None:
    family = load_family(tiny_sd, CPU)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    layer = family.parts["text_encoder"].text_model.final_layer_norm
    layer.register_forward_hook(lambda module, inputs, output: torch.dropout(output, 0.5, module.training))
    (expected,) = family.draw(["a"], [""], noise, 2, 3.0)
    family.parts["text_encoder"].train()
    (picture,) = family.draw(["a"], [""], noise, 2, 3.0)
    assert picture.tobytes() == expected.tobytes()
    assert family.parts["text_encoder"].training, "and on again afterwards"
