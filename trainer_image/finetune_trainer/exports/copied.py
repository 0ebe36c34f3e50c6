"""Results of techniques as they are now, whatever the training does next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from finetune_trainer.methods.base import AdapterWeights, Hypernetwork, NewWords, Result

K = TypeVar("K")


def copied(result: Result) -> Result:
    """`result` with copies of its tensors, on the CPU. Of whole parts it says only which they are; they are copied when
    they are made plain."""
    if isinstance(result, AdapterWeights):
        return replace(result, tensors=_all(result.tensors))
    if isinstance(result, NewWords):
        return NewWords(_all(result.words))
    if isinstance(result, Hypernetwork):
        layers = {width: (_tensors(keys), _tensors(values)) for width, (keys, values) in result.layers.items()}
        return replace(result, layers=layers)
    return result


def _all(nested: Mapping[K, Mapping[str, Tensor]]) -> dict[K, dict[str, Tensor]]:
    return {name: _tensors(tensors) for name, tensors in nested.items()}


def _tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}
