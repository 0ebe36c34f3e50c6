"""kohya's naming of adapter files, which web UIs read (https://github.com/kohya-ss/sd-scripts, networks/lora.py).

For each layer `<name>.lora_down.weight` [r, in, ...], `<name>.lora_up.weight` [out, r, ...] and the scalar
`<name>.alpha`; the update is alpha / r · up · down. Alpha stands beside each layer and not in the header alone: ComfyUI
reads no header. Layers of Stable Diffusion 1.x and 2.x have Diffusers' names, the UNet of SDXL has sgm's.
"""

from __future__ import annotations

import json
import re

import torch
from torch import Tensor

from finetune_trainer.exports.adapters import Layer, base_weight, layers_of, norms, over_outputs
from finetune_trainer.exports.kinds import is_xl, kind_of, modelspec
from finetune_trainer.exports.unet_names import UnetNames
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import AdapterWeights
from finetune_trainer.methods.lora import TARGETS, TEXT_TARGETS

# the only layers of a text encoder that ComfyUI and AUTOMATIC1111 look up
TEXT_LAYER = re.compile(r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])")
DOWN, UP, ALPHA, DORA = "lora_down.weight", "lora_up.weight", "alpha", "dora_scale"


def prefixes(family: Family) -> dict[str, str]:
    """Part → how its layers' names begin."""
    if is_xl(family):
        return {family.denoiser: "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    return {family.denoiser: "lora_unet", "text_encoder": "lora_te"}


def kohya_name(family: Family, part: str, module: str) -> str:
    """`lora_unet_…`, `lora_te_…`.

    Raises:
        ValueError: the programs that read this naming would pass the layer over.
    """
    prefix = prefixes(family).get(part)
    if prefix is None:
        raise ValueError(f"{part} has no place in kohya's naming")
    if part == family.denoiser:
        sgm = UnetNames.of(family.parts[part].config).ldm(module)
        module = sgm if is_xl(family) else module
    else:
        module = with_text_model(module)
        if TEXT_LAYER.fullmatch(module) is None:
            raise ValueError(f"{part}.{module} is a layer that web UIs pass over")
    return f"{prefix}_{module.replace('.', '_')}"


def check_kohya(family: Family, text: bool) -> None:
    """Goes through the names of all layers that may get matrices, those of the text encoders where `text`. Raises
    ValueError as `kohya_tensors`."""
    kinds = {family.denoiser: TARGETS} | (dict.fromkeys(family.text_encoders, TEXT_TARGETS) if text else {})
    for part, targets in kinds.items():
        ends = tuple(f".{end}" for of_kind in targets.values() for end in of_kind)
        for module, _ in family.parts[part].named_modules():
            if module.endswith(ends):
                kohya_name(family, part, module)


def with_text_model(module: str) -> str:
    """Versions of transformers differ in whether `text_model.` begins the names; files always have it."""
    return module if module.startswith("text_model.") or module == "text_projection" else f"text_model.{module}"


def kohya_tensors(family: Family, weights: AdapterWeights) -> dict[str, Tensor]:
    """All layers of all parts under their names in the file.

    Raises:
        ValueError: names the first layer that the programs which read this naming would pass over.
    """
    tensors: dict[str, Tensor] = {}
    for part, keys in weights.tensors.items():
        for module, layer in layers_of(keys, weights.config[part]).items():
            name = kohya_name(family, part, module)
            tensors[f"{name}.{DOWN}"], tensors[f"{name}.{UP}"] = layer.down, layer.up
            tensors[f"{name}.{ALPHA}"] = torch.tensor(layer.scale * layer.rank)
            if layer.magnitude is not None:
                tensors[f"{name}.{DORA}"] = dora_scale(layer, base_weight(family, part, module))
    return tensors


def dora_scale(layer: Layer, weight: Tensor) -> Tensor:
    """DoRA's magnitudes as ComfyUI and Forge reckon them, [out, 1, ...]: they multiply by dora_scale / ‖base weight‖,
    where the paper and PEFT have magnitude / ‖base weight + update‖."""
    assert layer.magnitude is not None
    lengths = norms(weight) / norms(weight.detach().float() + layer.update().to(weight.device))
    return over_outputs(layer.magnitude.float().to(weight.device) * lengths, weight)


def magnitude_of(scale: Tensor, layer: Layer, weight: Tensor) -> Tensor:
    """The inverse of `dora_scale`, [out]."""
    lengths = norms(weight.detach().float() + layer.update().to(weight.device)) / norms(weight)
    return scale.float().flatten().to(weight.device) * lengths


def kohya_metadata(family: Family, weights: AdapterWeights, name: str) -> dict[str, str]:
    """The least that trainers of this naming always write (web UIs tell model kinds apart by it), and fields of the
    Stability AI model specification 1.0.0 (https://github.com/Stability-AI/ModelSpec).

    Args:
        name: what web UIs call it.
    """
    layers = [
        layer for part, keys in weights.tensors.items() for layer in layers_of(keys, weights.config[part]).values()
    ]
    rank, alpha = str(layers[0].rank), f"{layers[0].scale * layers[0].rank:g}"
    convolutions = any(layer.down.dim() == 4 for layer in layers)
    arguments = {"conv_dim": rank, "conv_alpha": alpha} if convolutions else {}
    kind = kind_of(family)
    return {
        "ss_v2": str(kind.second),
        "ss_base_model_version": kind.version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": name,
        **modelspec(family, name, "lora"),
    }
