"""An adapter layer by layer, and what it makes of the weights that it lies on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune_trainer.families.base import Family
from finetune_trainer.methods.adapter_fit import scale_of

DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


@dataclass(frozen=True)
class Layer:
    """The matrices on one linear layer or convolution."""

    down: Tensor
    """[r, in], of a convolution [r, in, height, width]"""
    up: Tensor
    """[out, r], of a convolution [out, r, 1, 1]"""
    scale: float
    """The update is scale · up · down."""
    magnitude: Tensor | None = None
    """[out]: the length that each output's weights have (DoRA, https://arxiv.org/abs/2402.09353)"""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def update(self) -> Tensor:
        """What is added to the weights; float32, of their shape."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return self.scale * product.reshape(self.up.shape[0], *self.down.shape[1:])

    def applied(self, weight: Tensor) -> Tensor:
        """The weights with this layer in them: float32, shape of `weight`."""
        merged = weight.detach().float() + self.update().to(weight.device)
        if self.magnitude is None:
            return merged
        return merged * over_outputs(self.magnitude.float().to(weight.device) / norms(merged), merged)


def norms(weight: Tensor) -> Tensor:
    """Length of each output's weights, [out]."""
    return torch.linalg.vector_norm(weight.detach().float().flatten(1), dim=1)


def over_outputs(values: Tensor, weight: Tensor) -> Tensor:
    """[out] values, shaped so that they multiply the outputs of `weight`."""
    return values.reshape(-1, *[1] * (weight.dim() - 1))


def layers_of(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> dict[str, Layer]:
    """The layers that PEFT's keys spell, by module.

    Raises:
        ValueError: a key is none of PEFT's, or half of a layer is missing.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        for ending in (DOWN, UP, MAGNITUDE):
            if key.endswith(f".{ending}"):
                found.setdefault(key.removesuffix(f".{ending}"), {})[ending] = tensor
                break
        else:
            raise ValueError(f"{key} is no part of an adapter")
    layers = {}
    for module, parts in found.items():
        if DOWN not in parts or UP not in parts:
            raise ValueError(f"{module} has {', '.join(sorted(parts))} alone")
        magnitude = parts.get(MAGNITUDE)
        scale = scale_of(config, f"{module}.{DOWN}")
        layers[module] = Layer(parts[DOWN], parts[UP], scale, None if magnitude is None else magnitude.flatten())
    return layers


def keys_of(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """The inverse of `layers_of`; a magnitude has the shape that PEFT gives it."""
    tensors = {}
    for module, layer in layers.items():
        tensors[f"{module}.{DOWN}"], tensors[f"{module}.{UP}"] = layer.down, layer.up
        if layer.magnitude is not None:
            convolution = layer.down.dim() == 4
            tensors[f"{module}.{MAGNITUDE}"] = (
                layer.magnitude.reshape(1, -1, 1, 1) if convolution else layer.magnitude.flatten()
            )
    return tensors


def base_module(family: Family, part: str, name: str) -> nn.Module | None:
    """The layer of the base model below the adapter, None when the part has no such module."""
    try:
        module = family.parts[part].get_submodule(name)
    except (AttributeError, KeyError):
        return None
    base = getattr(module, "base_layer", module)
    return base if isinstance(base, nn.Module) else None


def base_weight(family: Family, part: str, name: str) -> Tensor:
    """Its weights. Raises ValueError when there are none."""
    weight = getattr(base_module(family, part, name), "weight", None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"{part} has no weights {name}")
    return weight
