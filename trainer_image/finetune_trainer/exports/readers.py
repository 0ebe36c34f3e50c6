"""Reads what people have: new words and hypernetworks in the layouts that are about. Adapters: adapter_files.py.

Pickled embeddings are unpickled with weights_only, which builds tensors and containers and calls nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from finetune_trainer.errors import DataError, first_line
from finetune_trainer.exports.adapter_files import read_adapter
from finetune_trainer.exports.hypernetworks import HEADER as HYPERNETWORK
from finetune_trainer.exports.tensors import read_tensors
from finetune_trainer.exports.words import HEADER as PLACEHOLDER
from finetune_trainer.exports.words import XL_KEYS
from finetune_trainer.methods.adapter_fit import size_of
from finetune_trainer.methods.base import Hypernetwork

__all__ = ["read_adapter", "read_hypernetwork", "read_words"]

ANONYMOUS = {"emb_params", "emp_params"}
"""Keys of trainers that do not write the word into the file."""
OUTPUT_EMBEDDINGS = "_out"
"""Ends keys of vectors behind the text encoder, which some trainers add; prompts have none."""


def read_words(path: Path) -> dict[str | None, dict[str | None, Tensor]]:
    """An embedding file in any of the layouts of Diffusers, AUTOMATIC1111, kohya and OneTrainer.

    Returns:
        The word → text encoder → float32 [n, width]. The word is None where the file does not say it; the text encoder
        is None where there is only one.

    Raises:
        DataError: it is no such file, or holds something that is no embedding.
    """
    word: str | None
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = read_tensors(path)
        word = metadata.get(PLACEHOLDER)
    else:
        tensors, word = _unpickled(path)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(OUTPUT_EMBEDDINGS)}
    parts = {key: part for part, key in XL_KEYS.items()}
    if tensors.keys() == parts.keys():
        vectors: dict[str | None, Tensor] = {part: _rows(path, key, tensors[key]) for key, part in parts.items()}
        counts = {len(rows) for rows in vectors.values()}
        if len(counts) > 1:
            raise DataError(
                f"{path.name} has {' and '.join(map(str, sorted(counts)))} vectors for the two text encoders; both "
                "need the same number: give another file"
            )
        return {word: vectors}
    if len(tensors) != 1:
        raise DataError(
            f"{path.name} has {len(tensors)} tensors ({', '.join(sorted(tensors)[:3])}); an embedding has one, or "
            "clip_l and clip_g for SDXL: give the file of one word"
        )
    (key, tensor), *_ = tensors.items()
    if word is None and key not in ANONYMOUS and key != "*":
        word = key
    return {word: {None: _rows(path, key, tensor)}}


def _unpickled(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler stumble in too many ways to name
        raise DataError(
            f"{path.name} cannot be read as an embedding ({first_line(error)}); it is damaged, or holds more than "
            "tensors and may run code: give a .safetensors file"
        ) from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path.name} holds a {type(content).__name__}; an embedding is a dictionary of tensors")
    name = content.get("name")
    if "string_to_param" in content:
        inner = content["string_to_param"]
        if not isinstance(inner, Mapping):
            raise DataError(f"{path.name} has a string_to_param that is no dictionary; give another file")
        content = inner
    tensors = {str(key): tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}
    return tensors, name if isinstance(name, str) and name else None


def _rows(path: Path, key: str, tensor: Tensor) -> Tensor:
    rows = tensor.detach().unsqueeze(0) if tensor.dim() == 1 else tensor.detach()
    if rows.dim() != 2 or 0 in rows.shape or not rows.is_floating_point() or not bool(torch.isfinite(rows).all()):
        raise DataError(
            f"{path.name} has at {key} {rows.dtype} of {size_of(tensor.shape)}; an embedding is finite numbers, "
            "vectors × width: give another file"
        )
    return rows.float()


def read_hypernetwork(path: Path) -> Hypernetwork:
    """The .safetensors that this trainer writes.

    Raises:
        DataError: it is another file. The .pt of web UIs is not read.
    """
    tensors, metadata = read_tensors(path)
    try:
        settings = json.loads(metadata[HYPERNETWORK])
        layers: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        for key, tensor in tensors.items():
            width, side, name = key.split(".", 2)
            layers.setdefault(int(width), ({}, {}))["kv".index(side)][name] = tensor.float()
        if not isinstance(settings, dict):
            raise ValueError("the settings in its header are no object")
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path.name} is no hypernetwork of this trainer ({first_line(error)}); give the .safetensors that stands "
            "beside the .pt"
        ) from error
    return Hypernetwork(layers, settings)
