"""What is fetched as a model: a pipeline to fine-tune, or an encoder that judges. Which files belong to each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from finetune_trainer.errors import DataError

COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "text_encoder_2", "tokenizer_2")
WEIGHTED = ("unet", "vae", "text_encoder")
# model.safetensors and its shards, not diffusion_pytorch_model.non_ema.safetensors; half precision is second choice
WEIGHTS = (r"[^.]+\.safetensors(\.index\.json)?", r"[^.]+\.fp16\.safetensors")


@dataclass(frozen=True)
class ModelKind:
    """A kind of model, and how the spec calls it."""

    index: str
    """The file that makes a folder one of this kind."""
    layout: str
    """For people: "a model in Diffusers' layout"."""
    uri_field: str
    revision_field: str
    wanted: Callable[[Sequence[str]], list[str]]
    """Of a repository's files, those to fetch. Raises DataError where they are not all there."""


def wanted_files(names: Sequence[str]) -> list[str]:
    """Of a repository's files, those of a Diffusers pipeline: JSON, the tokenizers' text, one set of safetensors.

    Raises:
        DataError: it is no Diffusers pipeline, or its weights are not there as safetensors.
    """
    if "model_index.json" not in names:
        raise DataError("it has no model_index.json, so it is not in Diffusers' layout; choose one that is")
    paths = [path for path in map(PurePosixPath, names) if len(path.parts) == 2 and path.parts[0] in COMPONENTS]
    texts = [path for path in paths if path.suffix in (".json", ".txt") and ".safetensors" not in path.name]
    weighted = {*WEIGHTED, *(path.parts[0] for path in paths if path.parts[0] == "text_encoder_2")}
    for pattern in WEIGHTS:
        weights = [path for path in paths if re.fullmatch(pattern, path.name)]
        absent = weighted - {path.parts[0] for path in weights}
        if not absent:
            return sorted(["model_index.json", *map(str, texts + weights)])
    whole = {path.parts[0] for path in paths if re.fullmatch(WEIGHTS[0], path.name)}
    raise DataError(
        f"its {', '.join(c for c in sorted(weighted) if c not in whole)} is not there as safetensors; choose a model "
        "that has all parts so"
    )


def wanted_encoder_files(names: Sequence[str]) -> list[str]:
    """Of a repository's files, those of an encoder in transformers' layout: JSON and text beside config.json, and
    model.safetensors.

    Raises:
        DataError: they are not there.
    """
    for name in ("config.json", "model.safetensors"):
        if name not in names:
            raise DataError(
                f"it has no {name}; choose a DINO, DINOv2 or CLIP model in transformers' layout, with safetensors "
                "weights"
            )
    paths = [path for path in map(PurePosixPath, names) if len(path.parts) == 1]
    return sorted([*(str(path) for path in paths if path.suffix in (".json", ".txt")), "model.safetensors"])


PIPELINE = ModelKind(
    "model_index.json", "a model in Diffusers' layout", "spec.baseModel.uri", "spec.baseModel.revision", wanted_files
)
ENCODER = ModelKind(
    "config.json",
    "an encoder in transformers' layout",
    "spec.judgement.encoderUri",
    "spec.judgement.encoderRevision",
    wanted_encoder_files,
)
