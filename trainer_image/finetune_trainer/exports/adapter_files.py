"""Reads adapter files: Diffusers' with PEFT's keys, Diffusers' older ones, and kohya's for all families."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune_trainer.errors import DataError
from finetune_trainer.exports.adapters import Layer, base_module, base_weight, keys_of
from finetune_trainer.exports.diffusers_lora import HEADER
from finetune_trainer.exports.kohya import kohya_name, magnitude_of
from finetune_trainer.exports.tensors import read_tensors
from finetune_trainer.families.base import Family
from finetune_trainer.methods.adapter_fit import divisor, size_of
from finetune_trainer.methods.base import AdapterWeights

# endings of keys in each naming → what the tensor is
ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".dora_scale": "dora",
    ".alpha": "alpha",
}
# the attention of Diffusers before 0.22, whose layers lay in processors, by its names for what is an encoder's layer
OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

Found = dict[tuple[str, str], dict[str, Tensor]]
"""Part and module → what → tensor."""


def read_adapter(path: Path, family: Family) -> AdapterWeights:
    """An adapter for `family`, float32, with alpha (and rank, where layers differ in it) as the file has them. A file
    that says no alpha has the scale 1.

    Raises:
        DataError: it is damaged, it has keys that are no layer of this model (the first and how many), or layers that
            do not fit the model's weights.
    """
    tensors, metadata = read_tensors(path)
    places = _kohya_places(family) if any(key.startswith("lora_") for key in tensors) else None
    found: Found = {}
    unknown = []
    for key, tensor in tensors.items():
        place = _place(key, family, places)
        if place is None:
            unknown.append(key)
        else:
            part, module, what = place
            found.setdefault((part, module), {})[what] = tensor.float()
    if unknown:
        raise DataError(
            f"{path.name} has {len(unknown)} of {len(tensors)} keys that are no layer of this {family.name} model, "
            f"the first {unknown[0]}; give a LoRA made for this kind of model"
        )
    if not found:
        raise DataError(f"{path.name} has no layers; give a LoRA file")
    configs = _configs(path, metadata)
    layers: dict[str, dict[str, Layer]] = {}
    for (part, module), parts in found.items():
        layers.setdefault(part, {})[module] = _layer(path, family, part, module, parts, configs.get(part, {}))
    return AdapterWeights(
        {part: keys_of(modules) for part, modules in layers.items()},
        {part: _config(modules, configs.get(part, {})) for part, modules in layers.items()},
    )


def _place(key: str, family: Family, places: Mapping[str, tuple[str, str]] | None) -> tuple[str, str, str] | None:
    for ending, what in ENDINGS.items():
        if key.endswith(ending):
            name = key.removesuffix(ending)
            place = places.get(name) if places is not None else _diffusers_place(name, family)
            return None if place is None else (*place, what)
    return None


def _diffusers_place(name: str, family: Family) -> tuple[str, str] | None:
    part, _, module = name.partition(".")
    if part not in family.parts:
        return None
    module = module.replace(".processor.", ".")
    if part == family.denoiser:
        module = re.sub(r"\.to_out$", ".to_out.0", module)
    else:
        module = re.sub(r"\.(to_[qkv]|to_out)$", lambda match: f".{OLD_TEXT[match[1]]}", module)
    for candidate in (module, module.removeprefix("text_model."), f"text_model.{module}"):
        if base_module(family, part, candidate) is not None:
            return part, candidate
    return None


def _kohya_places(family: Family) -> dict[str, tuple[str, str]]:
    """kohya's names of everything that the family has; for the first encoder both lora_te and lora_te1."""
    places = {}
    for part in (family.denoiser, *family.text_encoders):
        for module, layer in family.parts[part].named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d) and not hasattr(layer, "base_layer"):
                continue
            try:
                name = kohya_name(family, part, module)
            except ValueError:
                continue
            places[name] = part, module
            if part == family.denoiser:
                # SDXL files of other tools have Diffusers' names
                places.setdefault(f"lora_unet_{module.replace('.', '_')}", (part, module))
            elif part == family.text_encoders[0]:
                places[re.sub("^lora_te1?_", "lora_te1_", name)] = places[re.sub("^lora_te1?_", "lora_te_", name)] = (
                    part,
                    module,
                )
    return places


def _layer(
    path: Path, family: Family, part: str, module: str, parts: Mapping[str, Tensor], config: Mapping[str, object]
) -> Layer:
    if "down" not in parts or "up" not in parts:
        raise DataError(
            f"{path.name} has {', '.join(sorted(parts))} alone of {part}.{module}; the file is not whole: fetch it anew"
        )
    weight, down, up = base_weight(family, part, module), parts["down"], parts["up"]
    out, *inputs = weight.shape
    rank = len(down) if down.dim() else 0
    if rank == 0 or down.numel() != rank * math.prod(inputs) or up.shape[:2] != (out, rank) or up.numel() != out * rank:
        raise DataError(
            f"{path.name}: {part}.{module} is {size_of(up.shape)} by {size_of(down.shape)}, which does not fit the "
            f"model's {size_of(weight.shape)}; give a LoRA made for this model"
        )
    # linear layers of one program are 1 × 1 convolutions of another
    down, up = down.reshape(rank, *inputs), up.reshape(out, rank, *[1] * (len(inputs) - 1))
    layer = Layer(down, up, _scale(path, module, parts, config, rank))
    if "magnitude" in parts:
        return _with_magnitude(path, module, layer, parts["magnitude"].flatten())
    if "dora" in parts:
        scale = parts["dora"]
        if scale.shape[:1] != (out,) or scale.numel() != out:
            raise DataError(
                f"{path.name}: dora_scale of {part}.{module} is {size_of(scale.shape)}, which is not one number for "
                f"each of {out} outputs; other kinds of DoRA cannot be read: train it with PEFT, Diffusers or this "
                "trainer"
            )
        return _with_magnitude(path, module, layer, magnitude_of(scale, layer, weight).cpu())
    return layer


def _with_magnitude(path: Path, module: str, layer: Layer, magnitude: Tensor) -> Layer:
    if len(magnitude) != layer.up.shape[0]:
        raise DataError(
            f"{path.name}: {module} has {len(magnitude)} magnitudes for {layer.up.shape[0]} outputs; fetch it anew"
        )
    return replace(layer, magnitude=magnitude)


def _scale(path: Path, module: str, parts: Mapping[str, Tensor], config: Mapping[str, object], rank: int) -> float:
    if "alpha" in parts:
        alpha = parts["alpha"]
        if alpha.numel() != 1 or not bool(torch.isfinite(alpha).all()):
            raise DataError(f"{path.name}: alpha of {module} is not one number; fetch the file anew")
        return alpha.item() / rank
    given = config.get("lora_alpha", rank)
    pattern = config.get("alpha_pattern")
    if isinstance(pattern, Mapping):
        given = pattern.get(module, given)
    if not isinstance(given, int | float):
        raise DataError(f"{path.name}: lora_alpha in its header is {given!r}, no number; fetch the file anew")
    return float(given) / divisor(rank, bool(config.get("use_rslora")))


def _configs(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """PEFT's settings of each part, from the header. Empty where there are none."""
    if HEADER not in metadata:
        return {}
    try:
        flat = json.loads(metadata[HEADER])
        configs: dict[str, dict[str, object]] = {}
        for key, value in flat.items():
            part, _, name = key.partition(".")
            configs.setdefault(part, {})[name] = value
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path.name}: {HEADER} in its header is no JSON object ({error}); fetch it anew") from error
    return configs


def _config(layers: Mapping[str, Layer], header: Mapping[str, object]) -> dict[str, object]:
    """r and lora_alpha of the first layer; those of layers that differ stand in patterns, as in PEFT."""
    stabilised = bool(header.get("use_rslora"))
    ranks = {module: layer.rank for module, layer in layers.items()}
    alphas = {module: layer.scale * divisor(layer.rank, stabilised) for module, layer in layers.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config: dict[str, object] = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": header.get("target_modules", sorted(layers)),
        "peft_type": "LORA",
        "use_rslora": stabilised,
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
    }
    if len(set(ranks.values())) > 1:
        config["rank_pattern"] = {module: value for module, value in ranks.items() if value != rank}
    if len(set(alphas.values())) > 1:
        config["alpha_pattern"] = {module: value for module, value in alphas.items() if value != alpha}
    return config
