"""Diffusers' adapter file: `pytorch_lora_weights.safetensors` with PEFT's keys, rank and alpha in the header."""

from __future__ import annotations

import json

from torch import Tensor

from finetune_trainer.exports.adapters import MAGNITUDE
from finetune_trainer.exports.kohya import with_text_model
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import AdapterWeights

HEADER = "lora_adapter_metadata"

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The name that Diffusers looks for."""


def diffusers_tensors(family: Family, weights: AdapterWeights) -> dict[str, Tensor]:
    """`<part>.<module>.lora_A.weight` [r, in, ...] and so on, for `load_lora_weights`."""
    return {
        f"{part}.{key if part == family.denoiser else _text_key(key)}": tensor
        for part, keys in weights.tensors.items()
        for key, tensor in keys.items()
    }


def _text_key(key: str) -> str:
    """transformers' loader, which Diffusers hands a text encoder's keys to, finds a magnitude by its full name only and
    starts from a fresh one otherwise; PEFT's takes either."""
    return with_text_model(f"{key}.weight" if key.endswith(f".{MAGNITUDE}") else key)


def diffusers_metadata(weights: AdapterWeights) -> dict[str, str]:
    """PEFT's configuration of each part, flat, where Diffusers looks for it."""
    settings = {f"{part}.{name}": value for part, config in weights.config.items() for name, value in config.items()}
    return {HEADER: json.dumps(settings, indent=2, sort_keys=True)}
