"""What programs that do not install here do with files: AUTOMATIC1111's web UI and ComfyUI.

Written from their observed rules, in our own words: which names they look up, in which order they try kinds of files,
which they refuse, and the arithmetic. A file passes here when its every tensor is used and the result is right.

AUTOMATIC1111: extensions-builtin/Lora/networks.py and network*.py, modules/safe.py, modules/textual_inversion/
textual_inversion.py, modules/hypernetworks/hypernetwork.py (versions of 2023 to 2024).
ComfyUI: comfy/lora.py, comfy/utils.py, comfy/weight_adapter/, comfy/sd1_clip.py, comfy_extras/nodes_hypernetwork.py
(versions of 2024 to 2025).
"""

import re
from collections.abc import Mapping

import torch
from finetune_trainer.families.base import Family
from torch import Tensor, nn

Place = tuple[str, str]
TEXT_LAYERS = ("mlp.fc1", "mlp.fc2", *(f"self_attn.{name}_proj" for name in ("k", "q", "v", "out")))
RESNET = {"conv1": "in_layers_2", "conv2": "out_layers_3", "conv_shortcut": "skip_connection"}


def comfy_lora(file: Mapping[str, Tensor], family: Family) -> dict[Place, Tensor]:
    """The patched weights by part and module.

    Raises:
        AssertionError: a tensor of the file is not used, where ComfyUI writes "lora key not loaded".
    """
    left, patched = dict(file), {}
    for name, place in _comfy_names(family).items():
        up = left.pop(f"{name}.lora_up.weight", None)
        if up is None:
            continue
        down, alpha = left.pop(f"{name}.lora_down.weight"), left.pop(f"{name}.alpha", None)
        # the header is never read: without alpha the scale is 1
        scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
        weight = _weight(family, place)
        merged = weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        dora = left.pop(f"{name}.dora_scale", None)
        if dora is not None:
            merged = _comfy_dora(merged, weight, dora)
        patched[place] = merged
    assert not left, f"lora key not loaded: {sorted(left)}"
    return patched


def _comfy_dora(merged: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Along the outputs where the first size says so, and then by the norms of the weights without the update."""
    if scale.shape[0] == weight.shape[0]:
        norms = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
    else:
        norms = merged.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.dim() - 2))
    return merged * (scale / (norms + torch.finfo(weight.dtype).eps))


def _comfy_names(family: Family) -> dict[str, Place]:
    """Names that ComfyUI looks up: sgm's and Diffusers' for the UNet, the encoders' layers."""
    xl = "text_encoder_2" in family.parts
    names = {}
    for module in _modules(family, "unet"):
        names[f"lora_unet_{module.replace('.', '_')}"] = ("unet", module)
        names[f"lora_unet_{_sgm(family, module)}"] = ("unet", module)
    for part in family.text_encoders:
        prefixes = ["lora_te2"] if part == "text_encoder_2" else ["lora_te", "lora_te1"] if not xl else ["lora_te1"]
        for module in _modules(family, part):
            layer = re.fullmatch(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(.+)", module)
            if layer is not None and layer[2] in TEXT_LAYERS:
                for prefix in prefixes:
                    name = f"{prefix}_text_model_encoder_layers_{layer[1]}_{layer[2].replace('.', '_')}"
                    names[name] = (part, module)
    return names


def webui_lora(file: Mapping[str, Tensor], family: Family) -> dict[Place, Tensor]:
    """As `comfy_lora`, by AUTOMATIC1111's rules.

    Raises:
        AssertionError: a name is not matched, where the web UI leaves the layer out in silence.
    """
    layers: dict[Place, dict[str, Tensor]] = {}
    known = _webui_modules(family)
    for key, tensor in file.items():
        name, _, what = key.partition(".")
        found = known.get(_webui_name(name, family))
        if found is None and "lora_unet" in name:
            # SDXL's names are the model's own already
            found = known.get(name.replace("lora_unet", "diffusion_model"))
        elif found is None and "lora_te1_text_model" in name:
            found = known.get(name.replace("lora_te1_text_model", "0_transformer_text_model"))
        assert found is not None, f"{key} is not matched"
        layers.setdefault(found, {})[what] = tensor
    patched = {}
    for place, parts in layers.items():
        up, down = parts["lora_up.weight"], parts["lora_down.weight"]
        scale = parts["alpha"].item() / down.shape[0] if "alpha" in parts else 1.0
        weight = _weight(family, place)
        patched[place] = weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return patched


def _webui_name(name: str, family: Family) -> str:
    """From a file's name to the original code's. The numbers of blocks are counted by the model's own layers per block,
    which are two in all published models, and which the web UI takes for granted."""
    step = family.parts["unet"].config.layers_per_block + 1
    match = re.fullmatch(r"lora_unet_down_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", name)
    if match is not None:
        number = 1 + int(match[1]) * step + int(match[3])
        return f"diffusion_model_input_blocks_{number}_{_webui_inner(match[2], match[4])}"
    match = re.fullmatch(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)", name)
    if match is not None:
        number = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"diffusion_model_middle_block_{number}_{_webui_inner(match[1], match[3])[2:]}"
    match = re.fullmatch(r"lora_unet_up_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", name)
    if match is not None:
        number = int(match[1]) * step + int(match[3])
        return f"diffusion_model_output_blocks_{number}_{_webui_inner(match[2], match[4])}"
    match = re.fullmatch(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", name)
    if match is not None:
        return f"diffusion_model_input_blocks_{(int(match[1]) + 1) * step}_0_op"
    match = re.fullmatch(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", name)
    if match is not None:
        block = int(match[1])
        has_attention = "CrossAttn" in family.parts["unet"].config.up_block_types[block]
        return f"diffusion_model_output_blocks_{(block + 1) * step - 1}_{2 if has_attention else 1}_conv"
    match = re.fullmatch(r"lora_te_text_model_encoder_layers_(\d+)_(.+)", name)
    if match is not None and _has_open_clip(family):
        return f"model_transformer_resblocks_{match[1]}_{_open_clip(match[2])}"
    if match is not None:
        return f"transformer_text_model_encoder_layers_{match[1]}_{match[2]}"
    match = re.fullmatch(r"lora_te2_text_model_encoder_layers_(\d+)_(.+)", name)
    if match is not None:
        return f"1_model_transformer_resblocks_{match[1]}_{_open_clip(match[2])}"
    return name


def _open_clip(inner: str) -> str:
    return inner.replace("mlp_fc1", "mlp_c_fc").replace("mlp_fc2", "mlp_c_proj").replace("self_attn", "attn")


def _has_open_clip(family: Family) -> bool:
    """2.x"""
    return "text_encoder_2" not in family.parts and family.parts["text_encoder"].config.hidden_act == "gelu"


def _webui_inner(kind: str, rest: str) -> str:
    return f"0_{RESNET.get(rest, rest)}" if kind == "resnets" else f"1_{rest}"


def _webui_modules(family: Family) -> dict[str, Place]:
    """The original code's modules, by the names that the web UI gives them."""
    xl = "text_encoder_2" in family.parts
    known = {f"diffusion_model_{_sgm(family, module)}": ("unet", module) for module in _modules(family, "unet")}
    for part in family.text_encoders:
        for module in _modules(family, part):
            layer = re.fullmatch(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(.+)", module)
            if layer is None:
                continue
            inner = layer[2].replace(".", "_")
            # OpenCLIP's q, k and v are rows of one matrix, and found by cutting the name
            if part == "text_encoder_2":
                name = f"1_model_transformer_resblocks_{layer[1]}_{_open_clip(inner)}"
            elif _has_open_clip(family):
                name = f"model_transformer_resblocks_{layer[1]}_{_open_clip(inner)}"
            else:
                name = f"{'0_' if xl else ''}transformer_text_model_encoder_layers_{layer[1]}_{inner}"
            known[name] = part, module
    return known


def _sgm(family: Family, module: str) -> str:
    """The original code's name of a UNet's module, with underscores; put together block by block as its constructor
    does, which is not how the exporter finds it."""
    config = family.parts["unet"].config
    ours = [("conv_in", "input_blocks_0_0"), ("conv_out", "out_2")]
    number, last = 1, len(config.down_block_types) - 1
    for block, kind in enumerate(config.down_block_types):
        for layer in range(config.layers_per_block):
            ours.append((f"down_blocks.{block}.resnets.{layer}", f"input_blocks_{number}_0"))
            if "CrossAttn" in kind:
                ours.append((f"down_blocks.{block}.attentions.{layer}", f"input_blocks_{number}_1"))
            number += 1
        if block != last:
            ours.append((f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks_{number}_0_op"))
            number += 1
    ours += [("mid_block.resnets.0", "middle_block_0"), ("mid_block.resnets.1", "middle_block_2")]
    ours.append(("mid_block.attentions.0", "middle_block_1"))
    number = 0
    for block, kind in enumerate(config.up_block_types):
        for layer in range(config.layers_per_block + 1):
            ours.append((f"up_blocks.{block}.resnets.{layer}", f"output_blocks_{number}_0"))
            inner = 1
            if "CrossAttn" in kind:
                ours.append((f"up_blocks.{block}.attentions.{layer}", f"output_blocks_{number}_1"))
                inner = 2
            if layer == config.layers_per_block and block != last:
                ours.append((f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks_{number}_{inner}_conv"))
            number += 1
    for own, theirs in ours:
        if module == own or module.startswith(f"{own}."):
            rest = module[len(own) :].lstrip(".")
            return "_".join(filter(None, [theirs, RESNET.get(rest, rest.replace(".", "_"))]))
    return module.replace(".", "_")


def _modules(family: Family, part: str) -> list[str]:
    """Names of the layers with weights, adapters aside."""
    names = []
    for name, module in family.parts[part].named_modules():
        if isinstance(getattr(module, "base_layer", module), nn.Linear | nn.Conv2d) and not re.search(
            r"\.(base_layer|lora_[AB]\.\w+|lora_[AB])$", name
        ):
            names.append(name)
    return names


def _weight(family: Family, place: Place) -> Tensor:
    module = family.parts[place[0]].get_submodule(place[1])
    return getattr(module, "base_layer", module).weight.detach().float()
