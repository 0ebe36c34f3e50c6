"""Which layers get matrices, and how large those will be, known before there are any."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor, nn


def layers_of(part: nn.Module, ends: Collection[str]) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Layers of `part` whose names end so, as PEFT chooses them."""
    for path, module in part.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and any(path == end or path.endswith(f".{end}") for end in ends):
            yield path, module


def outline(layers: Iterable[tuple[str, nn.Linear | nn.Conv2d]], rank: int, use_dora: bool) -> dict[str, Tensor]:
    """PEFT's keys and shapes for `layers`; the tensors have no values (device meta).

    The lower matrix of a convolution looks where the convolution looks, the upper one at single places; the magnitudes
    of a DoRA are one for each output.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path, layer in layers:
        out, *inside = layer.weight.shape
        single = [1] * (len(inside) - 1)
        shapes[f"{path}.lora_A.weight"] = (rank, *inside)
        shapes[f"{path}.lora_B.weight"] = (out, rank, *single)
        if use_dora:
            shapes[f"{path}.lora_magnitude_vector"] = (1, out, *single) if single else (out,)
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
