"""In which arithmetic the forward pass runs. What the optimizer remembers is float32 always; trained weights and their
gradients are, unless training.weightsDtype says bf16 (trained_halves.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from finetune_api.training_run import ResolvedTraining

Precision = Literal["fp32", "bf16", "fp16"]
HALVES: Mapping[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of(spec: ResolvedTraining, device: torch.device) -> Precision:
    """What the run says, else bf16 on a GPU and fp32 on a CPU."""
    return spec.precision or ("fp32" if device.type == "cpu" else "bf16")


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Within, matrix products and convolutions are computed in `precision`, and what needs the range in float32."""
    return torch.autocast(device.type, HALVES.get(precision), enabled=precision in HALVES)
