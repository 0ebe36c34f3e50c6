"""A model folder in Diffusers' layout: what must be in it, and its digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from finetune_trainer.digests import sha256_of
from finetune_trainer.errors import DataError


def variant_of(folder: Path, weights: Mapping[str, str]) -> str | None:
    """Which set of files to load: None for the plain ones, "fp16" where a model has only those.

    Args:
        folder: the model.
        weights: part → file of its weights, without variant.

    Raises:
        DataError: names the first part that has no safetensors weights.
    """
    if all(shards_of(folder / part / file) for part, file in weights.items()):
        return None
    halves = {part: file.replace(".safetensors", ".fp16.safetensors") for part, file in weights.items()}
    if all((folder / part / file).is_file() for part, file in halves.items()):
        return "fp16"
    for part, file in weights.items():
        if not shards_of(folder / part / file):
            raise DataError(
                f"baseModel: {folder.name} has no {part}/{file}; only safetensors weights are loaded "
                "(pickled .bin and .ckpt files can run code): convert the model or use one that has them"
            )
    return None


def shards_of(file: Path) -> list[Path]:
    """The files that weights lie in: `file` itself, or those that the index beside it names (Diffusers cuts what is
    over 10 GB). Empty where there is neither.

    Raises:
        DataError: the index cannot be read.
    """
    if file.is_file():
        return [file]
    index = file.with_name(f"{file.name}.index.json")
    if not index.is_file():
        return []
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        return sorted(file.with_name(name) for name in names)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"baseModel: {file.parent.name}/{index.name} is no index of weights; fetch it anew") from error


def digests_of(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """SHA-256 over names and contents of the JSON, text and safetensors files of each part."""
    return {part: _digest(folder / part) for part in parts}


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".txt", ".safetensors"}:
            total.update(f"{path.name} {sha256_of(path)}\n".encode())
    return total.hexdigest()


def joint_digest(digests: Mapping[str, str]) -> str:
    """One SHA-256 for all."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
