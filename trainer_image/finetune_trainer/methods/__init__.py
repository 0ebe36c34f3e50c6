"""Techniques: one file each, and the one place that chooses among them."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.methods import MethodSpec

from finetune_trainer.errors import ConfigurationError
from finetune_trainer.methods.base import (
    AdapterWeights,
    Files,
    Hypernetwork,
    Method,
    Needs,
    NewWords,
    NoFiles,
    ParameterGroup,
    Result,
    WholeParts,
)
from finetune_trainer.methods.dreambooth import DreamBooth
from finetune_trainer.methods.lora import Lora

__all__ = [
    "AdapterWeights",
    "Files",
    "Hypernetwork",
    "Method",
    "Needs",
    "NewWords",
    "NoFiles",
    "ParameterGroup",
    "Result",
    "WholeParts",
    "make_methods",
    "needs_of",
]


def make_methods(spec: MethodSpec, seed: int) -> tuple[Method, ...]:
    """The technique that `spec` sets, or several that are trained together; `seed` is for the first values of new
    weights.

    Raises:
        ConfigurationError: it is one that this trainer does not carry out.
    """
    if spec.lora is not None:
        return (Lora(spec.lora, seed),)
    if spec.dream_booth is not None:
        return (DreamBooth(spec.dream_booth),)
    raise ConfigurationError(f"method.{spec.name} is not carried out by this trainer; use lora or dreamBooth")


def needs_of(methods: Sequence[Method]) -> Needs:
    """What any of `methods` needs."""
    return Needs(
        live_text_encoder=any(method.needs.live_text_encoder for method in methods),
        live_vae=any(method.needs.live_vae for method in methods),
    )
