"""Techniques: one file each, and the one place that chooses among them."""

from __future__ import annotations

from finetune_api.methods import MethodSpec

from finetune_trainer.errors import ConfigurationError
from finetune_trainer.methods.base import AdapterWeights, Method, Needs, ParameterGroup, WholeParts
from finetune_trainer.methods.dreambooth import DreamBooth
from finetune_trainer.methods.lora import Lora

__all__ = ["AdapterWeights", "Method", "Needs", "ParameterGroup", "WholeParts", "make_method"]


def make_method(spec: MethodSpec, seed: int) -> Method:
    """The technique that `spec` sets; `seed` is for the first values of new weights.

    Raises:
        ConfigurationError: it is one that this trainer does not carry out.
    """
    if spec.lora is not None:
        return Lora(spec.lora, seed)
    if spec.dream_booth is not None:
        return DreamBooth()
    raise ConfigurationError(f"method.{spec.name} is not carried out by this trainer; use lora or dreamBooth")
