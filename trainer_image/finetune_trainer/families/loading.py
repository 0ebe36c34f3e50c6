"""Reads the parts of a model in Diffusers' layout: safetensors and JSON alone, nothing that can run code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from finetune_trainer.errors import DataError, unreadable
from finetune_trainer.families.folder import digests_of, shards_of, variant_of

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
CLIP_WEIGHTS = "model.safetensors"

TextEncoderClass = type[CLIPTextModel] | type[CLIPTextModelWithProjection]


@dataclass(frozen=True)
class Loaded:
    """A model as it lies in its folder."""

    parts: dict[str, nn.Module]
    """unet, vae and the text encoders; float32, frozen, in evaluation mode."""
    tokenizers: dict[str, CLIPTokenizer]
    """By the text encoder that each is for."""
    scheduler: SchedulerMixin
    digests: dict[str, str]
    """SHA-256 of each folder."""


def tokenizer_of(text_encoder: str) -> str:
    """The folder of its tokenizer: text_encoder_2 → tokenizer_2."""
    return text_encoder.replace("text_encoder", "tokenizer")


def load_parts(folder: Path, device: torch.device, text_encoders: Mapping[str, TextEncoderClass]) -> Loaded:
    """Loads a UNet, a VAE, text encoders (folder → class) with their tokenizers, and the scheduler.

    Raises:
        DataError: a part is missing or cannot be read.
    """
    weights = {"unet": DIFFUSERS_WEIGHTS, "vae": DIFFUSERS_WEIGHTS} | dict.fromkeys(text_encoders, CLIP_WEIGHTS)
    folders = (*weights, *map(tokenizer_of, text_encoders), "scheduler")
    for name in folders:
        if not (folder / name).is_dir():
            raise DataError(f"baseModel: {folder.name} has no {name}/; it must have {', '.join(folders)}")
    variant = variant_of(folder, weights)
    parts: dict[str, nn.Module] = {}
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        with _naming(folder, name):
            parts[name], info = kind.from_pretrained(
                folder / name,
                torch_dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                variant=variant,
                output_loading_info=True,
            )
            _check_whole(info["missing_keys"])
    tokenizers: dict[str, CLIPTokenizer] = {}
    for name, encoder_class in text_encoders.items():
        with _naming(folder, name):
            file = CLIP_WEIGHTS.replace("model", f"model.{variant}" if variant else "model", 1)
            parts[name] = _text_encoder(encoder_class, folder / name, file)
        with _naming(folder, tokenizer_of(name)):
            tokenizers[name] = CLIPTokenizer.from_pretrained(folder / tokenizer_of(name), local_files_only=True)
    with _naming(folder, "scheduler"):
        scheduler = _scheduler(folder / "scheduler")
    for part in parts.values():
        # channels last is how CPU and GPU convolutions are fastest; it changes no value
        part.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
    return Loaded(parts, tokenizers, scheduler, digests_of(folder, folders))


def _text_encoder(kind: TextEncoderClass, folder: Path, file: str) -> nn.Module:
    """Read by hand: transformers 5.6 and later write the keys without `text_model.`, and the version in use here
    would take such a file for an empty one and go on with random weights."""
    encoder = kind(CLIPTextConfig.from_pretrained(folder, local_files_only=True))
    shards = [load_file(shard) for shard in shards_of(folder / file)]
    state = {_whole_key(key): value for shard in shards for key, value in shard.items()}
    _check_whole(encoder.load_state_dict(state, strict=False).missing_keys)
    return encoder.float()


def _whole_key(key: str) -> str:
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"


def _check_whole(missing: Iterable[str]) -> None:
    names = list(missing)
    if names:
        raise ValueError(f"{len(names)} tensors are missing, such as {names[0]}")


def _scheduler(folder: Path) -> SchedulerMixin:
    name = json.loads((folder / "scheduler_config.json").read_text()).get("_class_name", "DDPMScheduler")
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"{name} is not a scheduler of Diffusers")
    return kind.from_pretrained(folder, local_files_only=True)


def _naming(folder: Path, part: str) -> AbstractContextManager[None]:
    """Turns whatever a library raises about a broken part into a DataError that names the part."""
    return unreadable(f"baseModel: {part}/ of {folder.name}", "fetch it anew or use another model")
