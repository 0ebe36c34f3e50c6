"""Gradient checkpointing: activations are thrown away in the forward pass and computed again in the backward pass."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from finetune_trainer.engines.dropout import drops


def compute_twice(part: nn.Module) -> None:
    """Makes `part` do so. Diffusers and transformers have different words for it.

    Only what drops is told to drop the same again: to ask the generators for their state is what a GPU cannot do while
    a step is being captured.
    """
    how = {"use_reentrant": False, "preserve_rng_state": drops(part)}
    if hasattr(part, "enable_gradient_checkpointing"):
        part.enable_gradient_checkpointing(partial(_again, how))
    else:
        part.gradient_checkpointing_enable(how)


def _again(how: dict[str, bool], block: nn.Module, *inputs: object) -> object:
    return checkpoint(block.__call__, *inputs, **how)
