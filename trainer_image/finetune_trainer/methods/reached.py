"""Which parameters of the text encoders have a say in the conditioning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from finetune_trainer.families.base import Family


def reached(family: Family, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of `parameters` that the text's encoding depends on; the others no longer want a gradient.

    A model that reads an inner layer of its text encoder (SDXL; clip skip) leaves those above it without a gradient.
    An engine that waits for every gradient would wait for theirs for ever.
    """
    cond = family.encode_text(family.tokenize(["a"]))
    total = cond.embeddings.sum() if cond.pooled is None else cond.embeddings.sum() + cond.pooled.sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    chosen = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
        else:
            chosen[name] = parameter
    return chosen
