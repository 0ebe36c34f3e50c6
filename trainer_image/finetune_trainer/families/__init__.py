"""Kinds of base models. `load_family` finds the one that a folder holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

import finetune_trainer.families.quiet  # noqa: F401 - sets how loud the libraries imported below are
from finetune_trainer.errors import DataError
from finetune_trainer.families.base import Cond, Family, Moments
from finetune_trainer.families.sd import StableDiffusion
from finetune_trainer.families.sdxl import StableDiffusionXL

__all__ = ["Cond", "Family", "Moments", "load_family"]

# by the pipeline class that model_index.json names; such a file never decides which code is imported
FAMILIES: Mapping[str, type[StableDiffusion] | type[StableDiffusionXL]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
}


def load_family(path: Path, device: torch.device, clip_skip: int = 0) -> Family:
    """Loads the base model in `path` (Diffusers' layout, safetensors) in float32.

    Args:
        clip_skip: layers left out at the end of the text encoders.

    Raises:
        DataError: it is no such model, of a kind that is not known, or parts of it are missing or broken.
        ConfigurationError: `clip_skip` leaves no layer of a text encoder.
    """
    index = path / "model_index.json"
    try:
        kind = json.loads(index.read_text()).get("_class_name")
    except FileNotFoundError:
        raise DataError(
            f"baseModel: {path} has no model_index.json; give a model in Diffusers' layout (a folder with "
            "model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/)"
        ) from None
    except (ValueError, AttributeError) as error:
        raise DataError(f"baseModel: {index} is not a JSON object ({error}); fetch the model anew") from error
    if kind not in FAMILIES:
        raise DataError(
            f"baseModel: {path} is a {kind}; these can be fine-tuned: {', '.join(sorted(FAMILIES))} "
            "(Stable Diffusion 1.x and 2.x, SDXL)"
        )
    return FAMILIES[kind].load(path, device, clip_skip)
