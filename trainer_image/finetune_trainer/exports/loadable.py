"""Which of the exported files people load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_trainer.exports.diffusers_lora import ADAPTER_FILE


def loadable(files: Sequence[Path]) -> tuple[str, ...]:
    """Of `files`, relative to their folder, what people load, Diffusers' layout first: a whole pipeline by its folder,
    everything else file by file."""
    whole = ["pipeline"] if Path("pipeline/model_index.json") in files else []
    single = [path for path in files if path.parts[0] != "pipeline" and path.suffix in (".safetensors", ".pt")]
    single.sort(key=lambda path: (path.name != ADAPTER_FILE, path))
    return (*whole, *(path.as_posix() for path in single))
