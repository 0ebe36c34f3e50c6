"""Trained weights in the formats that people load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_api import TrainingRun

from finetune_trainer.exports.diffusers_layout import write_adapter, write_pipeline
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import AdapterWeights, Result

__all__ = ["export_weights"]


def export_weights(run: TrainingRun, family: Family, results: Sequence[Result], out_dir: Path) -> list[Path]:
    """Writes what was trained below `out_dir`, in the formats and the number format of output.

    Returns:
        The files: lora/pytorch_lora_weights.safetensors for `load_lora_weights`, or a whole pipeline/ for
        `from_pretrained`.
    """
    (result,) = results
    if isinstance(result, AdapterWeights):
        folder = out_dir / run.method.name
        write_adapter(family, result, folder, run.output.dtype)
    else:
        folder = out_dir / "pipeline"
        write_pipeline(family, folder, run.output.dtype)
    return sorted(path for path in folder.rglob("*") if path.is_file())
