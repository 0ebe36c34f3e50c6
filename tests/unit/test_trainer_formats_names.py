"""Names of LoRA layers of the real models, complete, against golden lists and against the programs that look them up.

The models are built without memory from their published configurations. A line of a golden list is the layer in
Diffusers' file, and in kohya's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from finetune_trainer.exports.adapters import Layer, keys_of
from finetune_trainer.exports.diffusers_lora import diffusers_tensors
from finetune_trainer.exports.kohya import kohya_metadata, kohya_tensors
from finetune_trainer.methods.base import AdapterWeights
from support.consumers import comfy_lora, webui_lora
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

GOLDEN = Path(__file__).parent / "golden"
KINDS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feedForward": ("ff.net.0.proj", "ff.net.2"),
    "convolution": ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
}
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
UNETS = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
ENCODERS = {
    "sd15": {"text_encoder": (CLIP_L, "quick_gelu")},
    "sd21": {"text_encoder": (CLIP_H, "gelu")},
    "sdxl": {"text_encoder": (CLIP_L, "quick_gelu"), "text_encoder_2": (CLIP_G, "gelu")},
}
# layers: attention, with feed-forward, with convolutions too, those of the text encoders
COUNTS = {"sd15": (128, 160, 224, 72), "sd21": (128, 160, 224, 138), "sdxl": (560, 700, 749, 264)}
PARAMETERS = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684}


@dataclass(frozen=True)
class Model:
    """As much of a family as names are made from. Implements Family."""

    parts: dict[str, nn.Module]
    text_encoders: tuple[str, ...]
    denoiser: str = "unet"
    prediction_type: str = "epsilon"
    resolution: int = 512


@cache
def model(name: str) -> Model:
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"unet": UNet2DConditionModel(**UNETS[name])}
        for part, (sizes, activation) in ENCODERS[name].items():
            kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            parts[part] = kind(CLIPTextConfig(**sizes, hidden_act=activation, projection_dim=1280))
    assert sum(parameter.numel() for parameter in parts["unet"].parameters()) == PARAMETERS[name]
    return Model(parts, tuple(ENCODERS[name]))


def adapter(name: str, kinds: tuple[str, ...] = tuple(KINDS), text: bool = True) -> AdapterWeights:
    """Of rank 2, without numbers."""
    endings = tuple(f".{ending}" for kind in kinds for ending in KINDS[kind])
    tensors: dict[str, dict[str, Tensor]] = {}
    for part, network in model(name).parts.items():
        if part != "unet" and not text:
            continue
        layers = {}
        for module, layer in network.named_modules():
            if module.endswith(endings if part == "unet" else TEXT):
                out, inputs, *kernel = layer.weight.shape
                with torch.device("meta"):
                    layers[module] = Layer(torch.empty(2, inputs, *kernel), torch.empty(out, 2, *[1] * len(kernel)), 1)
        tensors[part] = keys_of(layers)
    return AdapterWeights(tensors, {part: {"r": 2, "lora_alpha": 1.0} for part in tensors})


def layers_in(keys: dict[str, Tensor], ending: str) -> list[str]:
    return [key.removesuffix(ending) for key in keys if key.endswith(ending)]


@pytest.mark.parametrize("name", COUNTS)
def test_golden_names(name: str) -> None:
    weights = adapter(name)
    own = layers_in(diffusers_tensors(model(name), weights), ".lora_A.weight")
    theirs = layers_in(kohya_tensors(model(name), weights), ".lora_down.weight")
    assert len(set(theirs)) == len(theirs) == len(own)
    lines = [f"{one} {other}" for one, other in zip(own, theirs, strict=True)]
    assert lines == (GOLDEN / f"lora_{name}.txt").read_text().splitlines()


@pytest.mark.parametrize("name", COUNTS)
def test_how_many(name: str) -> None:
    attention, feed_forward, convolution, text = COUNTS[name]
    for kinds, expected in (
        (("attention",), attention),
        (("attention", "feedForward"), feed_forward),
        (("attention", "feedForward", "convolution"), convolution),
    ):
        tensors = kohya_tensors(model(name), adapter(name, kinds, text=False))
        assert len(tensors) == 3 * expected
    everything = kohya_tensors(model(name), adapter(name))
    assert sum(key.startswith("lora_te") for key in everything) == 3 * text


SAMPLES = {
    "sd15": [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_up_blocks_0_upsamplers_0_conv",
        "lora_te_text_model_encoder_layers_11_mlp_fc2",
    ],
    "sd21": ["lora_te_text_model_encoder_layers_22_self_attn_q_proj"],
    "sdxl": [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_4_0_skip_connection",
        "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_v",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_output_blocks_8_0_out_layers_3",
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj",
        "lora_te2_text_model_encoder_layers_31_mlp_fc1",
    ],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_names_that_files_in_the_wild_have(name: str) -> None:
    assert set(SAMPLES[name]) <= set(layers_in(kohya_tensors(model(name), adapter(name)), ".lora_down.weight"))


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("reader", [comfy_lora, webui_lora])
def test_web_uis_find_every_layer(name: str, reader: Callable[..., dict[tuple[str, str], Tensor]]) -> None:
    weights = adapter(name)
    found = reader(kohya_tensors(model(name), weights), model(name))
    assert found.keys() == {
        (part, key) for part, keys in weights.tensors.items() for key in layers_in(keys, ".lora_A.weight")
    }


@pytest.mark.parametrize("name", COUNTS)
def test_diffusers_turns_them_back(name: str) -> None:
    weights = adapter(name)
    state = _maybe_map_sgm_blocks_to_diffusers(kohya_tensors(model(name), weights), SimpleNamespace(layers_per_block=2))
    state, alphas = _convert_non_diffusers_lora_to_diffusers(state)
    unet = convert_unet_state_dict_to_peft({key: value for key, value in state.items() if key.startswith("unet.")})
    text = convert_state_dict_to_peft({key: value for key, value in state.items() if key.startswith("text_encoder")})
    assert (unet | text).keys() == diffusers_tensors(model(name), weights).keys()
    assert set(alphas.values()) == {1.0}


@pytest.mark.parametrize(
    ("name", "prediction", "version", "second", "architecture"),
    [
        ("sd15", "epsilon", "sd_v1", "False", "stable-diffusion-v1/lora"),
        ("sd15", "v_prediction", "sd_v1_v", "False", "stable-diffusion-v1/lora"),
        ("sd21", "epsilon", "sd_v2", "True", "stable-diffusion-v2-512/lora"),
        ("sd21", "v_prediction", "sd_v2_v", "True", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_the_header_says_which_model(name: str, prediction: str, version: str, second: str, architecture: str) -> None:
    family = replace(model(name), prediction_type=prediction)
    header = kohya_metadata(family, adapter(name), "my-dog")
    assert header["ss_base_model_version"] == version
    assert header["ss_v2"] == second
    assert header["modelspec.architecture"] == architecture
    assert header["modelspec.prediction_type"] == ("epsilon" if prediction == "epsilon" else "v")
    assert header["modelspec.implementation"].startswith("https" if name == "sdxl" else "diffusers")
    assert header["ss_network_dim"] == "2"
    assert header["ss_network_alpha"] == "1"
    assert header["ss_network_args"] == '{"conv_dim": "2", "conv_alpha": "1"}'
    assert header["ss_output_name"] == "my-dog"
    assert kohya_metadata(model(name), adapter(name, ("attention",)), "my-dog")["ss_network_args"] == "{}"
