"""A whole model in one .safetensors in LDM's layout, which web UIs load as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune_trainer.exports.kinds import is_xl, modelspec
from finetune_trainer.exports.kohya import with_text_model
from finetune_trainer.exports.ldm_names import ldm_vae, open_clip
from finetune_trainer.exports.tensors import write_tensors
from finetune_trainer.exports.unet_names import UnetNames
from finetune_trainer.families.base import Family

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_FIRST, XL_SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


def write_single_file(family: Family, parts: Mapping[str, nn.Module], path: Path, title: str) -> None:
    """Writes `parts`, plain copies of the family's.

    Raises:
        ValueError: a name has no counterpart in LDM's layout.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    tensors = {key: tensor.contiguous() for key, tensor in ldm_tensors(family, states).items()}
    write_tensors(path, tensors, modelspec(family, title, None))


def check_single_file(family: Family) -> None:
    """Goes through all names, with no tensor touched. `family`: with nothing installed yet. Raises ValueError as
    `write_single_file`."""
    ldm_tensors(
        family,
        {
            name: {key: tensor.to("meta") for key, tensor in part.state_dict().items()}
            for name, part in family.parts.items()
        },
    )


def ldm_tensors(family: Family, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The parts' weights, as Diffusers and transformers name them, under their names in a checkpoint. Raises ValueError
    as `write_single_file`."""
    names = UnetNames.of(family.parts[family.denoiser].config)
    tensors = {f"{UNET}{names.ldm(key)}": tensor for key, tensor in states[family.denoiser].items()}
    tensors |= _prefixed(VAE, ldm_vae(states["vae"]))
    first = {with_text_model(key): tensor for key, tensor in states["text_encoder"].items()}
    if is_xl(family):
        tensors |= _prefixed(XL_FIRST, first) | _prefixed(XL_SECOND, open_clip(states["text_encoder_2"]))
        tensors |= _marks(family)
    # OpenAI's CLIP is the one with the quick approximation of GELU; 2.x has OpenCLIP's
    elif family.parts["text_encoder"].config.hidden_act == "quick_gelu":
        tensors |= _prefixed(CLIP, first)
    else:
        tensors |= _prefixed(OPEN_CLIP, open_clip(first))
    return tensors


def _marks(family: Family) -> dict[str, Tensor]:
    """Empty tensors by which web UIs know an SDXL that predicts velocity; 2.x is known without."""
    if family.prediction_type != "v_prediction":
        return {}
    marks = {"v_pred": torch.tensor([])}
    if family.pipeline().scheduler.config.get("rescale_betas_zero_snr"):
        marks["ztsnr"] = torch.tensor([])
    return marks


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}
