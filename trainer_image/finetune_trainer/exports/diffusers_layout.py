"""Diffusers' layout: an adapter for `load_lora_weights`, or a whole pipeline for `from_pretrained`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import AdapterWeights

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
Dtype = Literal["fp16", "fp32"]


def write_adapter(family: Family, weights: AdapterWeights, folder: Path, dtype: Dtype) -> None:
    """Writes pytorch_lora_weights.safetensors with PEFT's keys. Rank and alpha stand in the header, where Diffusers
    looks for them."""
    layers: dict[str, object] = {}
    for part, tensors in weights.tensors.items():
        layers[f"{part}_lora_layers"] = {key: _plain(tensor, dtype) for key, tensor in tensors.items()}
        layers[f"{part}_lora_adapter_metadata"] = dict(weights.config[part])
    family.pipeline().save_lora_weights(folder, safe_serialization=True, **layers)
    for path in folder.glob("*.safetensors"):
        sort_metadata(path)


def sort_metadata(path: Path) -> None:
    """Puts the entries of a safetensors header's metadata in order. The library writes them in an order that differs
    from process to process, and the same training should give the same bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise ValueError(f"{path.name}: the header grew from {size} to {len(text)} bytes when it was put in order")
        file.seek(8)
        file.write(text.ljust(size))


def write_pipeline(family: Family, folder: Path, dtype: Dtype) -> None:
    """Writes the whole model with its own scheduler, safetensors throughout. The live parts stay as they are."""
    pipeline = family.pipeline()
    pipeline.register_modules(**{name: _plain_copy(part, dtype) for name, part in family.parts.items()})
    pipeline.save_pretrained(folder, safe_serialization=True)


def _plain(tensor: Tensor, dtype: Dtype) -> Tensor:
    return tensor.detach().to("cpu", DTYPES[dtype], copy=True).contiguous()


def _plain_copy(part: nn.Module, dtype: Dtype) -> nn.Module:
    copied: nn.Module = copy.deepcopy(part).to("cpu", DTYPES[dtype], memory_format=torch.contiguous_format)
    return copied.eval()
