"""LDM's names and shapes of a VAE's and of text encoders' weights: what single-file checkpoints hold.

Facts from the original code (https://github.com/CompVis/latent-diffusion, https://github.com/mlfoundations/open_clip).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

VAE_INNER = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

OPEN_CLIP_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)")
OPEN_CLIP_OUTER = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_INNER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def ldm_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An AutoencoderKL's weights under LDM's names; its attention's layers are 1 × 1 convolutions there.

    Raises:
        ValueError: a name has no counterpart.
    """
    blocks = 1 + max(int(match[2]) for match in map(VAE_INNER.fullmatch, state) if match is not None)
    renamed = {}
    for key, tensor in state.items():
        name = _vae_name(key, blocks)
        is_attention = re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", name) is not None
        renamed[name] = tensor[:, :, None, None] if is_attention and tensor.dim() == 2 else tensor
    return renamed


def _vae_name(key: str, blocks: int) -> str:
    inner = VAE_INNER.fullmatch(key)
    if inner is not None:
        way, block, kind, index, rest = inner.groups()
        # the decoder's are counted from the picture's side
        number = int(block) if way == "encoder.down" else blocks - 1 - int(block)
        if kind == "resnets":
            return f"{way}.{number}.block.{index}.{_shortcut(rest)}"
        return f"{way}.{number}.{kind.removesuffix('rs')}.{rest}"
    middle = VAE_MIDDLE.fullmatch(key)
    if middle is not None:
        side, kind, index, rest = middle.groups()
        if kind == "resnets":
            return f"{side}.mid.block_{int(index) + 1}.{_shortcut(rest)}"
        layer, _, last = rest.rpartition(".")
        if layer not in VAE_ATTENTION:
            raise ValueError(f"{key} of the VAE has no name in LDM's scheme")
        return f"{side}.mid.attn_{int(index) + 1}.{VAE_ATTENTION[layer]}.{last}"
    if not key.startswith(("encoder.conv_", "decoder.conv_", "quant_conv.", "post_quant_conv.")):
        raise ValueError(f"{key} of the VAE has no name in LDM's scheme")
    return key.replace(".conv_norm_out.", ".norm_out.")


def _shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")


def open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder's weights as OpenCLIP has them: queries, keys and values in one matrix, the projection the
    other way round.

    Raises:
        ValueError: a name has no counterpart.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer = OPEN_CLIP_LAYER.fullmatch(key)
        if key == "text_projection.weight":
            renamed["text_projection"] = tensor.T
        elif layer is None:
            if key not in OPEN_CLIP_OUTER:
                raise ValueError(f"{key} of the text encoder has no name in OpenCLIP's scheme")
            renamed[OPEN_CLIP_OUTER[key]] = tensor
        elif re.search(r"\.[kv]_proj\.", key) is None:
            number, rest = layer.groups()
            place = f"transformer.resblocks.{number}"
            if rest.startswith("self_attn.q_proj."):
                three = [state[key.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
                renamed[f"{place}.attn.in_proj_{rest.rpartition('.')[2]}"] = torch.cat(three)
            else:
                name, _, last = rest.rpartition(".")
                if name not in OPEN_CLIP_INNER:
                    raise ValueError(f"{key} of the text encoder has no name in OpenCLIP's scheme")
                renamed[f"{place}.{OPEN_CLIP_INNER[name]}.{last}"] = tensor
    return renamed
