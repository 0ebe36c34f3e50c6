"""Copies of a family's networks as their libraries know them: adapters folded in, new words in the table."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from finetune_trainer.exports.adapters import Layer, layers_of
from finetune_trainer.exports.tensors import DTYPES, Dtype
from finetune_trainer.families.base import Family
from finetune_trainer.families.words import Vocabulary
from finetune_trainer.methods.base import AdapterWeights


def plain_parts(family: Family, adapter: AdapterWeights | None, dtype: Dtype) -> dict[str, nn.Module]:
    """All parts on the CPU, nothing shared with the live ones. Without `adapter`, matrices that lie on a part are left
    out of its copy.

    Raises:
        ValueError: a layer of the adapter lies on no layer of the model.
    """
    copies = {}
    for name, part in family.parts.items():
        keys = {} if adapter is None else adapter.tensors.get(name, {})
        layers = layers_of(keys, adapter.config[name]) if adapter is not None and keys else {}
        copies[name] = plain_copy(part, layers, dtype)
    return copies


@torch.no_grad()
def plain_copy(part: nn.Module, layers: Mapping[str, Layer], dtype: Dtype) -> nn.Module:
    """A copy of one part with `layers` folded in, in evaluation mode. Folded in float32, rounded afterwards.

    Raises:
        ValueError: a layer lies on none of the part's.
    """
    copied = _on_cpu(part, torch.float32 if layers else DTYPES[dtype])
    for name, module in list(copied.named_modules()):
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Module):
            _replace(copied, name, base)
        elif isinstance(module, Vocabulary):
            _replace(copied, name, nn.Embedding.from_pretrained(module.weight.detach().clone()))
    # a library that finds these saves the adapter alone
    for mark in ("peft_config", "_hf_peft_config_loaded"):
        copied.__dict__.pop(mark, None)
    for name, layer in layers.items():
        weight = getattr(_module(copied, name), "weight", None)
        if not isinstance(weight, nn.Parameter):
            raise ValueError(f"the adapter has a layer {name}, and the model has none")
        weight.copy_(layer.applied(weight))
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    return copied.eval()


def _on_cpu(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that never takes memory on the part's own device, where there may be room for one model only."""
    copies: dict[int, object] = {}
    for parameter in part.parameters():
        data = parameter.detach().to("cpu", dtype, copy=True).contiguous()
        copies[id(parameter)] = nn.Parameter(data, requires_grad=False)
    for buffer in part.buffers():
        copies[id(buffer)] = buffer.detach().to("cpu", copy=True)
    copied: nn.Module = copy.deepcopy(part, copies)
    return copied


def _module(part: nn.Module, name: str) -> nn.Module | None:
    try:
        return part.get_submodule(name)
    except AttributeError:
        return None


def _replace(part: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(part.get_submodule(parent), last, module)
