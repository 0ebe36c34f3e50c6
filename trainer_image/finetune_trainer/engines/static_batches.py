"""Batches at a fixed place in the device's memory: what was captured once reads its input there in every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from finetune_trainer.data.samples import Batch, mapped

Signature = tuple[tuple[tuple[int, ...], torch.dtype], ...]


def signature_of(batch: Batch) -> Signature:
    """Shapes and types of all tensors. Batches with the same one can use the same place."""
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in _tensors(batch))


def place_for(batch: Batch, device: torch.device) -> Batch:
    """A batch like `batch` on `device`, without its values."""
    return mapped(batch, lambda tensor: torch.zeros_like(tensor, device=device))


def put(batch: Batch, place: Batch) -> None:
    """Copies the values of `batch`, wherever it is, to `place`. On a GPU nobody waits: the copies follow what was given
    to it before."""
    for tensor, kept in zip(_tensors(batch), _tensors(place), strict=True):
        # the host would wait for a copy from memory that can be swapped out
        source = tensor.pin_memory() if kept.is_cuda and not tensor.is_cuda else tensor
        kept.copy_(source, non_blocking=True)


def _tensors(value: object) -> Iterator[Tensor]:
    """In the order of the fields. What a family adds to its conditioning is found too."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
