"""Adapter files of others: every naming, ranks and alphas that differ by layer, and files that must be refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetune_trainer.errors import DataError
from finetune_trainer.exports.adapters import layers_of
from finetune_trainer.exports.readers import read_adapter
from finetune_trainer.families import Family, load_family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.consumers import comfy_lora
from support.tiny_sd import build_tiny_sd
from support.tiny_sdxl import build_tiny_sdxl
from torch import Tensor

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.self_attn"
Matrices = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(build_tiny_sd(tmp_path_factory.mktemp("sd")), torch.device("cpu"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(build_tiny_sdxl(tmp_path_factory.mktemp("sdxl")), torch.device("cpu"))


def matrices(rank: int, out: int, *inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Down and up."""
    numbers = torch.Generator().manual_seed(seed)
    ones = [1] * (len(inputs) - 1)
    return torch.randn(rank, *inputs, generator=numbers), torch.randn(out, rank, *ones, generator=numbers)


Q, P, C, T = matrices(4, 32, 32), matrices(4, 32, 32, seed=1), matrices(4, 16, 16, 3, 3), matrices(4, 24, 24)


def named(down: str, up: str, layers: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {
        key: tensor.clone()
        for name, pair in layers.items()
        for key, tensor in zip((name + down, name + up), pair, strict=True)
    }


def underscored(name: str) -> str:
    return name.replace(".", "_")


NAMINGS = {
    "PEFT": named(
        ".lora_A.weight",
        ".lora_B.weight",
        {f"unet.{QUERY}": Q, f"unet.{OUT}.0": P, f"unet.{CONVOLUTION}": C, f"text_encoder.{TEXT}.q_proj": T},
    ),
    "PEFT, transformers without text_model": named(
        ".lora_A.weight",
        ".lora_B.weight",
        {
            f"unet.{QUERY}": Q,
            f"unet.{OUT}.0": P,
            f"unet.{CONVOLUTION}": C,
            "text_encoder.encoder.layers.0.self_attn.q_proj": T,
        },
    ),
    "Diffusers since 0.22": named(
        ".lora.down.weight", ".lora.up.weight", {f"unet.{QUERY}": Q, f"unet.{OUT}.0": P, f"unet.{CONVOLUTION}": C}
    )
    | named(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight", {f"text_encoder.{TEXT}.q_proj": T}),
    "Diffusers before": named(
        "_lora.down.weight",
        "_lora.up.weight",
        {
            f"unet.{QUERY.replace('attn1.', 'attn1.processor.')}": Q,
            f"unet.{OUT.replace('attn1.', 'attn1.processor.')}": P,
            f"text_encoder.{TEXT}.to_q": T,
        },
    )
    | named(".lora.down.weight", ".lora.up.weight", {f"unet.{CONVOLUTION}": C}),
    "kohya": named(
        ".lora_down.weight",
        ".lora_up.weight",
        {
            f"lora_unet_{underscored(QUERY)}": Q,
            f"lora_unet_{underscored(OUT)}_0": P,
            f"lora_unet_{underscored(CONVOLUTION)}": C,
            f"lora_te_{underscored(TEXT)}_q_proj": T,
        },
    ),
    "kohya, linear layers as convolutions": named(
        ".lora_down.weight",
        ".lora_up.weight",
        {
            f"lora_unet_{underscored(QUERY)}": (Q[0][:, :, None, None], Q[1][:, :, None, None]),
            f"lora_unet_{underscored(OUT)}_0": P,
            f"lora_unet_{underscored(CONVOLUTION)}": C,
            f"lora_te1_{underscored(TEXT)}_q_proj": T,
        },
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_the_same_adapter(naming: str, sd: Family, tmp_path: Path) -> None:
    save_file(NAMINGS[naming], tmp_path / "lora.safetensors")
    weights = read_adapter(tmp_path / "lora.safetensors", sd)
    assert weights.tensors.keys() == {"unet", "text_encoder"}
    found = {
        (part, name): layer
        for part, keys in weights.tensors.items()
        for name, layer in layers_of(keys, weights.config[part]).items()
    }
    expected = {
        ("unet", QUERY): Q,
        ("unet", f"{OUT}.0"): P,
        ("unet", CONVOLUTION): C,
        ("text_encoder", f"{TEXT}.q_proj"): T,
    }
    assert found.keys() == expected.keys()
    for place, (down, up) in expected.items():
        assert torch.equal(found[place].down, down)
        assert torch.equal(found[place].up, up)
        # a file without alpha
        assert found[place].scale == 1


def test_sdxl_in_sgms_and_in_diffusers_names(sdxl: Family, tmp_path: Path) -> None:
    pair = matrices(2, 32, 32)
    for prefix in ("lora_unet_input_blocks_3_1", "lora_unet_down_blocks_1_attentions_0"):
        tensors = named(".lora_down.weight", ".lora_up.weight", {f"{prefix}_transformer_blocks_1_attn1_to_q": pair})
        tensors |= named(".lora_down.weight", ".lora_up.weight", {f"lora_te2_{underscored(TEXT)}_k_proj": pair})
        save_file(tensors, tmp_path / "lora.safetensors")
        weights = read_adapter(tmp_path / "lora.safetensors", sdxl)
        assert list(weights.tensors["unet"]) == [
            f"down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.lora_{half}.weight" for half in "AB"
        ]
        assert list(weights.tensors["text_encoder_2"]) == [f"{TEXT}.k_proj.lora_{half}.weight" for half in "AB"]


RANKS = st.integers(1, 6)
ALPHAS = st.one_of(st.none(), st.floats(0.125, 64, width=16))
PLACES = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (32, 32),
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (32, 24),
    "lora_unet_down_blocks_0_resnets_0_conv1": (16, 16, 3, 3),
    "lora_unet_down_blocks_1_resnets_0_conv_shortcut": (32, 16, 1, 1),
    "lora_te_text_model_encoder_layers_1_mlp_fc1": (48, 24),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layers=st.dictionaries(st.sampled_from(sorted(PLACES)), st.tuples(RANKS, ALPHAS), min_size=1),
    half=st.booleans(),
)
def test_ranks_and_alphas_of_each_layer(
    layers: dict[str, tuple[int, float | None]], half: bool, sd: Family, tmp_path: Path
) -> None:
    """Read, they do to the weights what ComfyUI makes of the same file."""
    tensors = {}
    for index, (name, (rank, alpha)) in enumerate(layers.items()):
        out, *inputs = PLACES[name]
        down, up = matrices(rank, out, *inputs, seed=index)
        dtype = torch.float16 if half else torch.float32
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = down.to(dtype), up.to(dtype)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    weights = read_adapter(path, sd)
    expected = comfy_lora({key: tensor.float() for key, tensor in load_file(path).items()}, sd)
    found = {
        (part, name): layer.applied(sd.parts[part].get_submodule(name).weight)
        for part, keys in weights.tensors.items()
        for name, layer in layers_of(keys, weights.config[part]).items()
    }
    assert found.keys() == expected.keys()
    for place, weight in expected.items():
        torch.testing.assert_close(found[place], weight, rtol=1e-4, atol=1e-4)


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    tensors = dict(NAMINGS["kohya"])
    for key, tensor in changes.items():
        name = f"lora_unet_{underscored(QUERY)}.{key.replace('__', '.')}"
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"has no layers; give a LoRA file"),
        ({"unet.conv_in.weight": torch.zeros(1)}, r"has 1 of 1 keys that are no layer of this stable-diffusion model"),
        (
            NAMINGS["kohya"] | {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha": torch.tensor(1.0)},
            r"has 1 of 9 keys .*, the first lora_unet_input_blocks_4_1_\w+\.alpha; give a LoRA made for this kind",
        ),
        (
            NAMINGS["PEFT"] | {"text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.zeros(4, 24)},
            "the first text_encoder_2",
        ),
        (changed(lora_up__weight=None), r"has down alone of unet\.down_blocks\.1"),
        (changed(lora_down__weight=None), r"has up alone of unet\.down_blocks\.1"),
        (changed(lora_down__weight=torch.zeros(4, 33)), r"is 32 × 4 by 4 × 33, which does not fit the model's 32 × 32"),
        (changed(lora_down__weight=torch.zeros(5, 32)), r"is 32 × 4 by 5 × 32, which does not fit"),
        (changed(lora_down__weight=torch.zeros(4)), r"does not fit the model's 32 × 32"),
        (changed(lora_up__weight=torch.zeros(())), r"does not fit the model's 32 × 32"),
        (changed(alpha=torch.tensor([1.0, 2.0])), r"alpha of .*to_q is not one number"),
        (changed(alpha=torch.tensor(torch.nan)), r"alpha of .*to_q is not one number"),
        (
            changed(dora_scale=torch.ones(1, 32)),
            r"dora_scale of .* is 1 × 32, .* for each of 32 outputs; other",
        ),
        (changed(dora_scale=torch.ones(32, 2)), r"dora_scale of .* is 32 × 2, which"),
        (changed(lora_down__weight=torch.zeros(0, 32), lora_up__weight=torch.zeros(32, 0)), r"does not fit"),
        (
            NAMINGS["PEFT"] | {f"unet.{QUERY}.lora_magnitude_vector": torch.ones(64)},
            r"to_q has 64 magnitudes for 32 outputs",
        ),
        (changed(dora_scale=torch.ones(())), r"dora_scale of .* is a single number"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tensors: dict[str, Tensor], message: str, sd: Family, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(DataError, match=message):
        read_adapter(tmp_path / "lora.safetensors", sd)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "lora_adapter_metadata in its header is no JSON object"),
        ("[1]", "lora_adapter_metadata in its header is no JSON object"),
        (json.dumps({"unet.lora_alpha": "much"}), r"lora_alpha in its header is 'much', no number"),
    ],
)
def test_headers_that_say_nothing_sensible(header: str, message: str, sd: Family, tmp_path: Path) -> None:
    save_file(NAMINGS["PEFT"], tmp_path / "lora.safetensors", {"lora_adapter_metadata": header})
    with pytest.raises(DataError, match=message):
        read_adapter(tmp_path / "lora.safetensors", sd)


def test_layers_alphas_in_the_header(sd: Family, tmp_path: Path) -> None:
    header = json.dumps({"unet.lora_alpha": 8, "unet.r": 4, "unet.alpha_pattern": {QUERY: 2}})
    save_file(NAMINGS["PEFT"], tmp_path / "lora.safetensors", {"lora_adapter_metadata": header})
    weights = read_adapter(tmp_path / "lora.safetensors", sd)
    layers = layers_of(weights.tensors["unet"], weights.config["unet"])
    assert {name: layer.scale for name, layer in layers.items()} == {QUERY: 0.5, f"{OUT}.0": 2, CONVOLUTION: 2}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject, sd: Family, tmp_path: Path) -> None:
    """Nothing else happens, whatever the bytes are."""
    path = tmp_path / "lora.safetensors"
    save_file(NAMINGS["PEFT"], path, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2})})
    whole = bytearray(path.read_bytes())
    damage: Callable[[], bytes] = data.draw(
        st.sampled_from([lambda: bytes(whole[: data.draw(st.integers(0, len(whole)))]), lambda: flipped(whole, data)])
    )
    path.write_bytes(damage())
    try:
        weights = read_adapter(path, sd)
    except DataError as error:
        assert str(error).startswith("lora.safetensors")
    else:
        assert set(weights.tensors) <= {"unet", "text_encoder"}


def flipped(whole: bytearray, data: st.DataObject) -> bytes:
    """Some bytes changed, most of them in the header."""
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 1200))] = data.draw(st.integers(0, 255))
    return bytes(changed)
