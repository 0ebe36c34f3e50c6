"""Whether a module draws random numbers while it trains."""

from __future__ import annotations

from torch import nn


def drops(module: nn.Module) -> bool:
    """Whether any layer of `module` has dropout. The text encoders drop in their attention by their configuration."""
    return any(
        (isinstance(layer, nn.Dropout) and layer.p > 0)
        or getattr(getattr(layer, "config", None), "attention_dropout", 0.0) > 0
        for layer in module.modules()
    )
