"""The weights are what people's own programs load, and draw what the live model draws."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from finetune_trainer.evaluation.drawing import drawn_pictures, first_pictures, noise_of
from finetune_trainer.exports import export_weights
from finetune_trainer.families import Family
from finetune_trainer.families.noise import drawing_scheduler
from safetensors.torch import load_file
from support.training import make_run, train_once
from torch import nn

LAYERS = [
    f"unet.{block}.transformer_blocks.0.{attention}.{layer}"
    for block in (
        "down_blocks.1.attentions.0",
        "mid_block.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
    )
    for attention in ("attn1", "attn2")
    for layer in ("to_k", "to_out.0", "to_q", "to_v")
]
LORA_KEYS = [f"{layer}.lora_{half}.weight" for layer in LAYERS for half in "AB"]
PIPELINE_FILES = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]
PROMPT = "a photo of sks dog"


def live_latents(family: Family) -> torch.Tensor:
    """By the training's own network."""
    pipeline = family.pipeline()
    return drawn_latents(pipeline, noise_of(family, 3))


@torch.no_grad()
def drawn_latents(pipeline: StableDiffusionPipeline, noise: torch.Tensor) -> torch.Tensor:
    """Two steps of the model's own sampler. Latents rather than pictures: nothing is rounded to 8 bits."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(PROMPT, num_inference_steps=2, latents=noise, output_type="latent", generator=generator).images


ALL = ["attention", "feedForward", "convolution"]


@pytest.mark.parametrize(
    ("settings", "dtype", "tolerance"),
    [
        ({}, "fp32", 1e-4),
        ({"alpha": 1.0}, "fp32", 1e-4),
        ({"alpha": 1.0}, "fp16", 5e-3),
        ({"alpha": 2.0, "targets": ALL}, "fp32", 1e-4),
    ],
)
def test_lora_loads_into_the_base_model(
    settings: dict[str, object], dtype: str, tolerance: float, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    method = {"lora": {"prompt": PROMPT, "rank": 4} | settings}
    run = make_run(method=method, training={"learningRate": 0.05}, output={"dtype": dtype, "formats": ["Diffusers"]})
    family, outcome = train_once(run, tiny_sd, pictures, tmp_path)
    (file,) = export_weights(run, family, [method.result() for method in outcome.methods], tmp_path / "out")
    assert file == tmp_path / "out" / "lora" / "pytorch_lora_weights.safetensors"

    base = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    untrained = drawn_latents(base, noise_of(family, 3))
    base.load_lora_weights(file.parent)
    loaded, live = drawn_latents(base, noise_of(family, 3)), live_latents(family)
    assert (loaded - live).abs().max() < tolerance
    assert (loaded - untrained).abs().max() > 20 * tolerance


def test_lora_file_has_these_keys_and_says_rank_and_alpha(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    run = make_run(
        method={"lora": {"prompt": PROMPT, "rank": 4, "alpha": 2.0}}, output={"dtype": "fp16", "formats": ["Diffusers"]}
    )
    family, outcome = train_once(run, tiny_sd, pictures, tmp_path)
    (file,) = export_weights(run, family, [method.result() for method in outcome.methods], tmp_path / "out")
    tensors = load_file(file)
    assert sorted(tensors) == sorted(LORA_KEYS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert tensors[LORA_KEYS[0]].shape == (4, 32)
    assert tensors[LORA_KEYS[1]].shape == (32, 4)
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    assert list(header["__metadata__"]) == ["format", "lora_adapter_metadata"]
    assert json.loads(header["__metadata__"]["lora_adapter_metadata"]) == {
        "unet.lora_alpha": 2.0,
        "unet.peft_type": "LORA",
        "unet.r": 4,
        "unet.target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
        "unet.use_dora": False,
        "unet.use_rslora": False,
    }


def test_each_kind_of_layer_gets_matrices(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    """A name that matched nothing would be passed over in silence."""
    found = {}
    for target in ALL:
        method = {"lora": {"prompt": PROMPT, "targets": [target]}}
        run = make_run(method=method, training={"steps": 1}, output={"formats": ["Diffusers"]})
        family, outcome = train_once(run, tiny_sd, pictures, tmp_path / target)
        (file,) = export_weights(
            run, family, [method.result() for method in outcome.methods], tmp_path / target / "out"
        )
        found[target] = {key.rpartition(".lora_")[0].removeprefix("unet.") for key in load_file(file)}
    layers = dict(UNet2DConditionModel.from_pretrained(tiny_sd / "unet").named_modules())
    blocks = {name for name, layer in layers.items() if isinstance(layer, nn.Linear) and ".transformer_blocks." in name}
    assert found["attention"] | found["feedForward"] == blocks
    assert found["attention"] == {name for name in blocks if ".attn" in name}
    outer = ("conv_in", "conv_out", "proj_in", "proj_out")
    convolutions = {name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    assert found["convolution"] == {name for name in convolutions if not name.endswith(outer)}


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("fp16", 5e-3)])
def test_dreambooth_is_a_whole_pipeline(
    dtype: str, tolerance: float, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    run = make_run("dreamBooth", output={"dtype": dtype})
    family, outcome = train_once(run, tiny_sd, pictures, tmp_path)
    files = export_weights(run, family, [method.result() for method in outcome.methods], tmp_path / "out")
    folder = tmp_path / "out" / "pipeline"
    assert [path.relative_to(folder).as_posix() for path in files] == PIPELINE_FILES
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16 if dtype == "fp16" else torch.float32}
    # web UIs look for CLIP's keys under this prefix
    assert all(key.startswith("text_model.") for key in load_file(folder / "text_encoder" / "model.safetensors"))

    loaded = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    live = live_latents(family)
    assert (drawn_latents(loaded, noise_of(family, 3)) - live).abs().max() < tolerance
    base = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    assert (drawn_latents(base, noise_of(family, 3)) - live).abs().max() > 20 * tolerance
    frozen = load_file(tiny_sd / "vae" / "diffusion_pytorch_model.safetensors")
    exported = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    for key, value in frozen.items():
        torch.testing.assert_close(exported[key].float(), value, rtol=1e-3, atol=1e-4)


def test_exporting_leaves_the_live_model_as_it_was(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    run = make_run("dreamBooth", output={"dtype": "fp16"})
    family, outcome = train_once(run, tiny_sd, pictures, tmp_path)
    before = live_latents(family)
    export_weights(run, family, [method.result() for method in outcome.methods], tmp_path / "out")
    assert torch.equal(live_latents(family), before)


def test_pictures_before_and_after_have_the_seeds_of_diffusers(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    family, _ = train_once(make_run(training={"learningRate": 0.05}), tiny_sd, pictures, tmp_path)
    progress: list[tuple[int, int]] = []
    drawn = drawn_pictures(family, ["sks dog", "a cat"], 5, 3, 4.0, lambda *done: progress.append(done))
    rows = first_pictures(drawn, 2, 5)
    assert [len(row) for row in rows] == [5, 5]
    assert {picture.size for row in rows for picture in row} == {(16, 16)}
    assert progress == [(8, 10), (10, 10)]
    again = first_pictures(drawn_pictures(family, ["a cat"], 5, 3, 4.0, lambda *done: None), 1, 5)
    for one, other in zip(rows[1], again[0], strict=True):
        # alone or in company: at most rounding differs
        assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 1

    pipeline = family.pipeline()
    pipeline.scheduler = drawing_scheduler(dict(pipeline.scheduler.config))
    generators = [torch.Generator().manual_seed(seed) for seed in range(5)]
    theirs = pipeline(["a cat"] * 5, num_inference_steps=3, guidance_scale=4.0, generator=generators).images
    for one, other in zip(again[0], theirs, strict=True):
        assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 1
