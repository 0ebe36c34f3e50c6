"""Trained weights in the formats that people load."""

from __future__ import annotations

from pathlib import Path

from finetune_api import TrainingRun

from finetune_trainer.exports.diffusers_layout import write_adapter, write_pipeline
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import AdapterWeights, Method

__all__ = ["export_weights"]


def export_weights(run: TrainingRun, family: Family, method: Method, out_dir: Path) -> list[Path]:
    """Writes what `method` trained below `out_dir`, in the number format of output.dtype.

    Returns:
        The files: lora/pytorch_lora_weights.safetensors for `load_lora_weights`, or a whole pipeline/ for
        `from_pretrained`.
    """
    result = method.result()
    if isinstance(result, AdapterWeights):
        folder = out_dir / run.method.name
        write_adapter(family, result, folder, run.output.dtype)
    else:
        folder = out_dir / "pipeline"
        write_pipeline(family, folder, run.output.dtype)
    return sorted(path for path in folder.rglob("*") if path.is_file())
