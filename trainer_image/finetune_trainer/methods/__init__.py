"""Techniques: one file each, and the one place that chooses among them."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.methods import MethodSpec

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
from finetune_trainer.methods.hypernetwork import HypernetworkMethod
from finetune_trainer.methods.lora import Lora
from finetune_trainer.methods.textual_inversion import TextualInversion

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
    """The technique that `spec` sets, or several that are trained together: LoRA with new words is pivotal tuning.

    Args:
        spec: with exactly one technique.
        seed: for the first values of new weights.

    Raises:
        ConfigurationError: a value cannot work with any model.
    """
    if spec.lora is not None:
        lora = Lora(spec.lora, seed)
        if spec.lora.tokens is None:
            return (lora,)
        # pivotal tuning: the words last, for what adds matrices to a text encoder freezes the rest of it
        words = TextualInversion(spec.lora.tokens, "method.lora.tokens", prompt=spec.lora.prompt)
        return (lora, words)
    if spec.dream_booth is not None:
        return (DreamBooth(spec.dream_booth),)
    if spec.textual_inversion is not None:
        inversion = spec.textual_inversion
        field = "method.textualInversion.tokens"
        return (TextualInversion(inversion.tokens, field, inversion.property, inversion.normalize_embeddings),)
    assert spec.hypernetwork is not None, "the API admits exactly one"
    return (HypernetworkMethod(spec.hypernetwork, seed),)


def needs_of(methods: Sequence[Method]) -> Needs:
    """What any of `methods` needs."""
    return Needs(
        live_text_encoder=any(method.needs.live_text_encoder for method in methods),
        live_vae=any(method.needs.live_vae for method in methods),
    )
