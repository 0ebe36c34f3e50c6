"""Whole models: one file in LDM's layout and Diffusers pipelines, with trained weights, adapters and words in them."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models import modeling_utils
from finetune_trainer.exports.pipelines import write_pipeline
from finetune_trainer.exports.plain_parts import plain_parts
from finetune_trainer.exports.single_file import ldm_tensors, write_single_file
from finetune_trainer.exports.words import Words
from finetune_trainer.families import Family, load_family
from safetensors import safe_open
from support.adapted import ATTENTION, CONVOLUTION, FEED_FORWARD, adapt
from support.tiny_sd import build_tiny_sd
from support.tiny_sdxl import build_tiny_sdxl

CLASSES = {"sd": StableDiffusionPipeline, "sd2": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
WORD = "<Sks-Dog>"


def build(kind: str, folder: Path) -> Path:
    if kind == "sdxl":
        return build_tiny_sdxl(folder)
    build_tiny_sd(folder)
    if kind == "sd2":
        # OpenCLIP's activation is how 2.x is told apart
        config = folder / "text_encoder" / "config.json"
        config.write_text(config.read_text().replace('"quick_gelu"', '"gelu"'))
    return folder


@pytest.fixture(scope="module", params=CLASSES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return build(request.param, tmp_path_factory.mktemp(request.param)), request.param


def load(folder: Path) -> Family:
    return load_family(folder, torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_one_file_loads_bit_for_bit(model: tuple[Path, str], dtype: str, tmp_path: Path) -> None:
    folder, kind = model
    family = load(folder)
    with torch.no_grad():
        for part in family.parts.values():
            for parameter in part.parameters():
                # trained a little, so that nothing can come from the base model
                parameter.add_(0.01)
    parts = plain_parts(family, None, dtype)
    write_single_file(family, parts, tmp_path / "dog.safetensors", "dog")
    loaded = CLASSES[kind].from_single_file(
        tmp_path / "dog.safetensors",
        config=str(folder),
        local_files_only=True,
        torch_dtype=torch.float16 if dtype == "fp16" else torch.float32,
    )
    for name, part in parts.items():
        expected, given = part.state_dict(), getattr(loaded, name).state_dict()
        assert given.keys() == expected.keys()
        for key, value in expected.items():
            assert given[key].dtype == value.dtype
            assert torch.equal(given[key], value), f"{name}.{key}"


def test_the_file_has_ldms_names(model: tuple[Path, str], tmp_path: Path) -> None:
    folder, kind = model
    family = load(folder)
    write_single_file(family, plain_parts(family, None, "fp16"), tmp_path / "dog.safetensors", "dog")
    with safe_open(tmp_path / "dog.safetensors", "pt") as file:
        keys = set(file.keys())
        assert file.metadata()["modelspec.title"] == "dog"
    assert "model.diffusion_model.input_blocks.0.0.weight" in keys
    assert "model.diffusion_model.output_blocks.1.1.transformer_blocks.0.attn2.to_k.weight" in keys
    assert "first_stage_model.decoder.up.1.upsample.conv.weight" in keys
    assert "first_stage_model.encoder.mid.attn_1.proj_out.weight" in keys
    # what AUTOMATIC1111 tells kinds of models apart by
    names = {
        "sd": "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "sd2": "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
        "sdxl": "conditioner.embedders.1.model.ln_final.weight",
    }
    assert {name for name in names.values() if name in keys} == {names[kind]}
    assert len({key.split(".")[0] for key in keys}) == 3


@pytest.mark.parametrize(
    ("scheduler", "marks"),
    [
        ({}, set()),
        ({"prediction_type": "v_prediction"}, {"v_pred"}),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"v_pred", "ztsnr"}),
    ],
)
def test_an_sdxl_that_predicts_velocity_says_so(scheduler: dict[str, object], marks: set[str], tmp_path: Path) -> None:
    """ComfyUI would draw noise with it otherwise: the weights do not show it."""
    family = load(build_tiny_sdxl(tmp_path / "model", **scheduler))
    states = {name: part.state_dict() for name, part in family.parts.items()}
    tensors = ldm_tensors(family, states)
    assert {key for key in tensors if "." not in key} == marks


def drawn(pipeline: DiffusionPipeline, prompt: str) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    size = {"height": 16, "width": 16}
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        prompt, num_inference_steps=2, latents=noise, output_type="latent", generator=generator, **size
    ).images


def test_a_part_is_one_file_however_large(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a world where everything is so much smaller that the tiny UNet is to Diffusers' 10 GB as SDXL's is."""
    family = load(tiny_sd)
    ours = (tiny_sd / "unet/diffusion_pytorch_model.safetensors").stat().st_size
    split = modeling_utils.split_torch_state_dict_into_shards

    def smaller(state: dict[str, torch.Tensor], max_shard_size: str, filename_pattern: str) -> object:
        size = float(max_shard_size[:-2]) * {"GB": 1e9, "TB": 1e12}[max_shard_size[-2:]]
        return split(state, max_shard_size=int(size / 10.27e9 * ours), filename_pattern=filename_pattern)

    monkeypatch.setattr(modeling_utils, "split_torch_state_dict_into_shards", smaller)
    family.pipeline().save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs/unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    write_pipeline(family, plain_parts(family, None, "fp32"), {}, tmp_path / "ours")
    assert [path.name for path in (tmp_path / "ours/unet").glob("*.safetensors*")] == [
        "diffusion_pytorch_model.safetensors"
    ]


@pytest.mark.parametrize("settings", [{"alpha": 2.0}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_a_merged_pipeline_draws_what_the_adapter_draws(
    model: tuple[Path, str], settings: dict[str, float], tmp_path: Path
) -> None:
    folder, _ = model
    family = load(folder)
    base = drawn(family.pipeline(), "a dog")
    weights = adapt(family, ATTENTION + FEED_FORWARD + CONVOLUTION, text=True, **settings)
    live = drawn(family.pipeline(), "a dog")
    write_pipeline(family, plain_parts(family, weights, "fp32"), {}, tmp_path)
    merged = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert (drawn(merged, "a dog") - live).abs().max() < 1e-5 * max(1.0, live.abs().max().item())
    assert (base - live).abs().max() > 1e-2
    assert torch.equal(drawn(family.pipeline(), "a dog"), live), "exporting changed the live model"


def add(family: Family, count: int) -> Words:
    numbers = torch.Generator().manual_seed(2)
    rows = {
        part: torch.randn(count, family.vocabulary(part).shape[1], generator=numbers) for part in family.text_encoders
    }
    family.add_word(WORD, rows)
    return {WORD: rows}


@pytest.mark.parametrize("count", [1, 3])
def test_words_are_in_a_merged_pipeline(model: tuple[Path, str], count: int, tmp_path: Path) -> None:
    folder, _ = model
    family = load(folder)
    words = add(family, count)
    live = family.encode_text(family.tokenize([f"a {WORD} dog"]))
    unknown = family.encode_text(family.tokenize(["a dog"]))
    write_pipeline(family, plain_parts(family, None, "fp32"), words, tmp_path)
    merged = load_family(tmp_path, torch.device("cpu"))
    assert merged.word_known(WORD)
    given = merged.encode_text(merged.tokenize([f"a {WORD} dog"]))
    torch.testing.assert_close(given.embeddings, live.embeddings, rtol=1e-5, atol=1e-5)
    assert (unknown.embeddings - live.embeddings).abs().max() > 1e-2
    if live.pooled is not None:
        torch.testing.assert_close(given.pooled, live.pooled, rtol=1e-5, atol=1e-5)

    # by Diffusers' own reading of prompts, which puts the word's other tokens behind it
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    text = f"a {WORD} dog"
    if live.pooled is None:
        embeddings, _ = pipeline.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)
    else:
        # pooled at the end of the text, which a new word's higher id must not be taken for
        embeddings, _, pooled, _ = pipeline.encode_prompt(text)
        torch.testing.assert_close(pooled, live.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embeddings, live.embeddings, rtol=1e-5, atol=1e-5)


def test_without_words_the_tokenizers_are_the_base_models(model: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = model
    family = load(folder)
    add(family, 2)
    write_pipeline(family, plain_parts(family, None, "fp32"), {}, tmp_path)
    for name in ("tokenizer", "tokenizer_2"):
        file = folder / name / "tokenizer.json"
        if file.is_file():
            assert (tmp_path / name / file.name).read_text() == file.read_text()
    assert not load_family(tmp_path, torch.device("cpu")).word_known(WORD)
