"""A model folder in Diffusers' layout: what must be in it, and its digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from finetune_trainer.errors import DataError


def variant_of(folder: Path, weights: Mapping[str, str]) -> str | None:
    """Which set of files to load: None for the plain ones, "fp16" where a model has only those.

    Args:
        folder: the model.
        weights: part → file of its weights, without variant.

    Raises:
        DataError: names the first part that has no safetensors weights.
    """
    if all((folder / part / file).is_file() for part, file in weights.items()):
        return None
    halves = {part: file.replace(".safetensors", ".fp16.safetensors") for part, file in weights.items()}
    if all((folder / part / file).is_file() for part, file in halves.items()):
        return "fp16"
    for part, file in weights.items():
        if not (folder / part / file).is_file():
            raise DataError(
                f"baseModel: {folder.name} has no {part}/{file}; only safetensors weights are loaded "
                "(pickled .bin and .ckpt files can run code): convert the model or use one that has them"
            )
    return None


def digests_of(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """SHA-256 over names and contents of the JSON, text and safetensors files of each part."""
    return {part: _digest(folder / part) for part in parts}


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".txt", ".safetensors"}:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.name} {content}\n".encode())
    return total.hexdigest()


def joint_digest(digests: Mapping[str, str]) -> str:
    """One SHA-256 for all."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
